"""What `set` has changed about a plate: kept in the plate, so that what was computed before can be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_isl.files import read_json

LOCK = "index/use.lock"  # in a plate: held by runs that read it, and by whoever changes it
KEY = "changes"  # beside the facts of the plate in its zarr.json
SETTABLE = {  # the keys of `set`; here, where they are read without anything that reads a plate
    "pixel_um": "edge of a pixel in micrometres; null: unknown",
    "channels.OLD": "the new name of the channel OLD; or channels={OLD: NEW, …}",
    "transmitted": "the label-free channels, as in transmitted=[Brightfield]; all others are stains",
}


@dataclass(frozen=True)
class MetadataChange:
    """One `set` of a plate.

    Attributes:
        before, after: the plate's fingerprint.
        lines: what was changed, as in `pixel_um: 325 -> 0.325`.
        former: the values that were replaced, as `metadata.plate_facts` writes them.
    """

    time: str
    user: str
    before: str
    after: str
    lines: tuple[str, ...]
    former: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        """As JSON; `of_facts` reads it."""
        return asdict(self)


def of_facts(ours: Mapping[str, Any]) -> tuple[MetadataChange, ...]:
    """The changes in the attributes of a plate, oldest first."""
    return tuple(MetadataChange(**{**facts, "lines": tuple(facts["lines"])}) for facts in ours.get(KEY, []))


def changes_of(plate: Path) -> tuple[MetadataChange, ...]:
    """The changes of the plate at a path; none where there is no plate that could be read."""
    try:
        attributes = (read_json(plate / "zarr.json") or {}).get("attributes", {})
        return of_facts(attributes.get("hpc_isl", {}))
    except (OSError, ValueError):
        return ()


def changed_since(changes: Iterable[MetadataChange], fingerprints: Iterable[str]) -> list[str]:
    """What was changed after one of these fingerprints was the plate's; empty where none was, or still is.

    >>> one = MetadataChange("2026-11-28T10:00", "me", "a", "b", ("pixel_um: 325 -> 0.325",), {})
    >>> changed_since([one], ["a", "of a model"]), changed_since([one], ["b"])
    (['pixel_um: 325 -> 0.325'], [])
    """
    known, made = set(fingerprints), list(changes)
    if not made or made[-1].after in known:
        return []
    first = max((place for place, change in enumerate(made) if change.before in known), default=len(made))
    return [line for change in made[first:] for line in change.lines]


def metadata_changed(plates: Iterable[Path], fingerprints: Iterable[str]) -> list[str]:
    """`metadata of P01 changed: pixel_um: 325 -> 0.325`, for each plate whose fingerprint was among these."""
    known = list(fingerprints)
    found = {plate.stem: changed_since(changes_of(plate), known) for plate in plates}
    return [f"metadata of {name} changed: {'; '.join(lines)}" for name, lines in found.items() if lines]
