"""Changes that `set` made to the metadata of a plate: kept in the plate, for runs computed before them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_isl.plate_home import home_of

LOCK = "index/use.lock"  # in a plate: held by runs that read it, and by `set`
KEY = "changes"  # beside the facts of the plate in its zarr.json
SETTABLE = {  # the keys of `set`; here, where they are read without anything that reads a plate
    "pixel_um": "edge of a pixel in micrometres; null: unknown",
    "channels.OLD": "the new name of the channel OLD; or channels={OLD: NEW, …}",
    "transmitted": "the label-free channels, as in transmitted=[Brightfield]; all others are stains",
}


@dataclass(frozen=True)
class MetadataChange:
    """One call of `set`.

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
        """Returns the change as JSON, which `of_facts` reads."""
        return asdict(self)


def of_facts(facts: Mapping[str, Any]) -> tuple[MetadataChange, ...]:
    """Returns the changes in the attributes of a plate, oldest first."""
    return tuple(
        MetadataChange(**{**change, "lines": tuple(change["lines"])}) for change in facts.get(KEY, [])
    )


def changes_of(plate: Path) -> tuple[MetadataChange, ...]:
    """Returns the changes of the plate at a path; none where no plate can be read."""
    try:
        content = (home_of(plate) / "zarr.json").read_bytes()
        # `status` asks about the plates of a thousand runs: few were ever changed, and JSON takes long.
        if f'"{KEY}"'.encode() not in content:
            return ()
        return of_facts(dict(json.loads(content)).get("attributes", {}).get("hpc_isl", {}))
    except (OSError, ValueError):
        return ()


def changed_since(changes: Iterable[MetadataChange], fingerprints: Iterable[str]) -> list[str]:
    """Returns what was changed after the plate had one of these fingerprints; nothing if it still has it.

    >>> change = MetadataChange("2026-11-28T10:00", "me", "a", "b", ("pixel_um: 325 -> 0.325",), {})
    >>> changed_since([change], ["a", "of a model"]), changed_since([change], ["b"])
    (['pixel_um: 325 -> 0.325'], [])
    """
    known_fingerprints, history = set(fingerprints), list(changes)
    # A plate may have been changed back: then nothing is different.
    if not history or history[-1].after in known_fingerprints:
        return []
    first = max(
        (place for place, change in enumerate(history) if change.before in known_fingerprints),
        default=len(history),
    )
    return [line for change in history[first:] for line in change.lines]


def metadata_changed(
    plates: Iterable[Path],
    fingerprints: Iterable[str],
    changes: Callable[[Path], Iterable[MetadataChange]] = changes_of,
) -> list[str]:
    """Returns `metadata of P01 changed: pixel_um: 325 -> 0.325` for each plate that had a fingerprint.

    `changes`: `changes_of`, or a function that caches its results.
    """
    known_fingerprints = list(fingerprints)
    changed_lines = {plate.stem: changed_since(changes(plate), known_fingerprints) for plate in plates}
    return [
        f"metadata of {name} changed: {'; '.join(lines)}" for name, lines in changed_lines.items() if lines
    ]
