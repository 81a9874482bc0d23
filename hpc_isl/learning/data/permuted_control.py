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
    """Returns the fields with the targets of others, in their own order, and messages for the user.

    Only fields of equal size, time and acquisition are exchanged: a field never learns its own stain,
    even at another time. A field that no other matches is left out.

    Raises:
        UserError: no two fields could be exchanged.
    """
    # By time too: a field must not learn its own stain at another time.
    groups = defaultdict(list)
    for number, field in enumerate(fields):
        groups[field.shape, field.time, field.key.acquisition].append(number)
    others: dict[int, int] = {}
    for place, group in enumerate(groups.values()):
        # Each field takes the targets of the next one on a random ring, so that none takes its own.
        ring = [int(number) for number in stream(seed, "control", place).permutation(group)]
        if len(ring) > 1:
            others.update(zip(ring, ring[1:] + ring[:1], strict=True))
    if not others:
        raise UserError(
            "control=permuted: no two training fields have one size; fields whose stains can be exchanged "
            "are needed, or control=none"
        )
    kept = []
    for number, other in sorted(others.items()):
        target = fields[other]
        # A crop's foreground is judged on the stain that it is to show.
        stain = {name: getattr(target, name) for name in ("targets", "foreground", "threshold")}
        kept.append(replace(fields[number], **stain))
    messages = [f"control=permuted: each of {len(kept)} training fields learns the stain of another one"]
    if alone := [field for number, field in enumerate(fields) if number not in others]:
        named = ", ".join(f"{field.plate} {field.key}" for field in alone[:LISTED])
        messages.append(
            f"{len(alone)} training fields are left out of the control, for no other has their size: {named}"
            + (", …" * (len(alone) > LISTED))
        )
    return kept, tuple(messages)
