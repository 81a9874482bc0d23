"""The `.HTD` file of MetaXpress: what a plate was planned to be. Files say what it is."""

# Seen in exports of MetaXpress 6.7; they repeat the file in each folder, and plan times and wavelengths of
# which there is no file.

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import layout, well_name, well_position
from hpc_isl.plates.readers.export import Layout, stated_layout
from hpc_isl.plates.readers.folder import Folder, nearest_files
from hpc_isl.plates.readers.plane_checks import listed


@dataclass(frozen=True)
class Htd:
    """The file, key -> values."""

    path: Path
    facts: Mapping[str, list[str]]

    def first(self, key: str) -> str:
        """Returns the first value of a key, or ""."""
        return next(iter(self.facts.get(key, ())), "")

    def wave_name(self, wave: int) -> str:
        """Returns the name of a wavelength, or ""."""
        return self.first(f"WaveName{wave}")

    def layout(self, wells: Collection[str]) -> Layout:
        """Returns all rows and columns of the plate, or of the smallest format where none are stated.

        Raises:
            UserError: numbers that are none, or a well outside the plate.
        """
        rows, columns = self._whole("YWells"), self._whole("XWells")
        if not rows or not columns:
            return layout(set(wells))
        if rows > 32 or columns > 48:
            raise UserError(f"{self.path}: {rows} rows and {columns} columns; at most 32 and 48 are expected")
        return stated_layout(set(wells), rows, columns, self.path)

    def planned(
        self, wells: Collection[str], waves: Collection[int], times: Collection[int | None]
    ) -> Iterator[str]:
        """Yields remarks on what the file plans and nothing shows."""
        numbers = [int(key[8:]) for key in self.facts if re.fullmatch(r"WaveName\d{1,3}", key)]
        if absent := [self.wave_name(wave) for wave in numbers if wave not in waves]:
            yield f"the HTD names {', '.join(map(repr, absent))}, of which there are no files"
        if self.first("TimePoints") not in ("", "0", "1", str(len(times))):
            yield f"the HTD plans {self.first('TimePoints')} times; there are {len(times)}"
        selected = {
            well_name(int(match[1]) - 1, column)
            for key, values in self.facts.items()
            if (match := re.fullmatch(r"WellsSelection(\d{1,2})", key))
            for column, text in enumerate(values)
            if text.upper() == "TRUE"
        }
        if lacking := sorted(selected - set(wells), key=well_position):
            count = f"{len(selected)} wells; {len(lacking)} of them"
            yield f"the HTD selects {count} have no files ({listed(lacking)})"

    def _whole(self, key: str) -> int:
        text = self.first(key)
        if text and not re.fullmatch(r"\d{1,6}", text):
            raise UserError(f"{self.path}: {key} is {text!r}; a whole number is expected")
        return int(text or 0)


def files(below: Folder) -> list[str]:
    """Returns the HTD files that lie nearest to the top, by name."""
    return nearest_files(below, lambda name: name.endswith(".htd"))


def find(below: Folder) -> Htd | None:
    """Returns the HTD of the export below a folder, None where there is none.

    Raises:
        UserError: several, of several exports; one that cannot be read.
    """
    names = files(below)
    if len(names) > 1:
        raise UserError(
            f"{below.root} holds {len(names)} exports ({', '.join(names[:5])}); give one as source"
        )
    return _parsed(below.root / names[0]) if names else None


def _parsed(path: Path) -> Htd:
    try:
        # Descriptions hold two bytes that are not UTF-8 in the place of each line break.
        content = path.read_bytes().replace(b"\x82\x81", b"; ")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    try:
        lines = list(csv.reader(text.splitlines(), skipinitialspace=True))
    except csv.Error as error:
        raise UserError(f"{path} cannot be understood: {error}") from None
    facts = {line[0]: [value.strip() for value in line[1:]] for line in lines if len(line) > 1}
    if "HTSInfoFile" not in facts:
        raise UserError(f"{path} has no line HTSInfoFile: damaged, or no file of MetaXpress")
    return Htd(path, facts)
