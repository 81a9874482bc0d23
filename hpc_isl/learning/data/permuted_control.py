"""The permuted control of pretraining: each training field learns the stain of another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from hpc_isl.errors import UserError
from hpc_isl.learning.data.fields import FieldView
from hpc_isl.seeds import stream

LISTED = 10


def permuted(fields: Sequence[FieldView], seed: int) -> tuple[list[FieldView], tuple[str, ...]]:
    """The fields with the targets of others, in their own order, and what a user should know.

    Only fields of equal size, time and acquisition are exchanged: a field never learns its own stain,
    nor its own stain at another time. One that is alone is left out.

    Raises:
        UserError: no two fields could be exchanged.
    """
    others = _others(fields, seed)
    kept = [_with_stain_of(fields[number], fields[other]) for number, other in sorted(others.items())]
    if not kept:
        raise UserError(
            "control=permuted: no two training fields have one size; fields whose stains can be exchanged "
            "are needed, or control=none"
        )
    alone = [field for number, field in enumerate(fields) if number not in others]
    return kept, tuple(_messages(kept, alone))


def _others(fields: Sequence[FieldView], seed: int) -> dict[int, int]:
    """Each field's other, by number: a random ring through each group, so that none is its own."""
    groups = defaultdict(list)
    for number, field in enumerate(fields):
        groups[field.shape, field.time, field.key.acquisition].append(number)
    others: dict[int, int] = {}
    for place, group in enumerate(groups.values()):
        ring = [int(number) for number in stream(seed, "control", place).permutation(group)]
        if len(ring) > 1:
            others.update(zip(ring, ring[1:] + ring[:1], strict=True))
    return others


def _with_stain_of(field: FieldView, other: FieldView) -> FieldView:
    """Where crops may lie is judged on what they are to show."""
    return replace(field, targets=other.targets, foreground=other.foreground, threshold=other.threshold)


def _messages(kept: Sequence[FieldView], alone: Sequence[FieldView]) -> list[str]:
    messages = [f"control=permuted: each of {len(kept)} training fields learns the stain of another one"]
    if alone:
        named = ", ".join(f"{field.plate} {field.key}" for field in alone[:LISTED])
        messages.append(
            f"{len(alone)} training fields are left out of the control, for no other has their size: {named}"
            + (", …" * (len(alone) > LISTED))
        )
    return messages
