"""ImageXpress and MetaXpress: exports with an `.HTD` file, and the layout of the MetaXpress database."""

# Seen in real exports (MetaXpress 6.5, 6.7; none with a bright field): `TimePoint_n/ZStep_m/`
# below the HTD or GUIDs after the wavelength; projections in `ZStep_0` or beside the steps; no `_s` or `_w`
# where there is one; and copies, with the z position, the time and the plane's GUID of what they are copies
# of, in the steps and times at which a channel was not imaged. Only read about: rows beyond P, 10 and more
# wavelengths, HTD files whose TIFFs state nothing.

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hpc_isl.errors import UserError
from hpc_isl.files import csv_rows
from hpc_isl.plates.plate import (
    MOST_COLUMNS,
    MOST_ROWS,
    Channel,
    Export,
    FieldKey,
    LeftOut,
    Problem,
    layout,
    normal_well,
    well_name,
    well_position,
)
from hpc_isl.plates.readers import export, fields, tiff_metadata
from hpc_isl.plates.readers.export import Described, Layout, stated_layout
from hpc_isl.plates.readers.folder import Folder, list_folder, nearest_file
from hpc_isl.plates.readers.plane_checks import listed
from hpc_isl.plates.readers.tiff_metadata import TiffMetadata
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata, number, whole

_GUID = r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}"
_PATH = re.compile(
    r"(?P<folder>(?:[^/]+/)*?)(?:TimePoint_(?P<time>\d+)/)?(?:ZStep_(?P<step>\d+)/)?"
    r"(?P<plate>[^/]+)_(?P<well>(?-i:[A-Z]{1,2})\d{2})(?:(?-i:_s)(?P<site>\d+))?(?:(?-i:_w)(?P<wave>\d+))?"
    rf"(?P<thumb>_thumb)?(?:{_GUID})?\.tiff?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?P<well>[A-Z]{1,2}\d+)\s*:\s*Site\s*(?P<site>\d+)", re.IGNORECASE)
_IMAGES = (".tif", ".tiff")
# Corrections by MetaXpress as images are taken. In 132 files only the values Off and None were seen.
_CORRECTIONS = ("ShadingCorrection", "ReferenceSubtraction")
_OFF = ("", "off", "none", "no", "0")


@dataclass(frozen=True, slots=True)
class _File:
    """An image as its path describes it; `step` and `time` are None where the path names none."""

    path: Path
    folder: str
    plate: str
    well: str
    site: str
    wave: int
    time: int | None
    step: int | None

    @property
    def place(self) -> tuple[str, str, str, int]:
        """The channel of a field."""
        return self.folder, self.well, self.site, self.wave


def recognise(below: Folder) -> bool:
    """Returns whether there is an HTD file, or an image whose name and metadata are those of MetaXpress."""
    if any(name.lower().endswith(".htd") for name in below.files):
        return True
    names = [name for name in below.files if (m := _PATH.fullmatch(name)) and not m["thumb"]]
    return tiff_metadata.source_of(below.root, names) in ("MetaSeries", "MetaMorph")


def read(folder: Path, resample: bool = False) -> Export:
    """Returns the plate below a folder: of an HTD export, or of a plate in the database's layout.

    Channels are in the order of their wavelengths, fields are sites. Positions are those of the stage in µm
    (y grows with the row), heights those of the stage. A channel that has planes is stored without its
    projection; of one that has only a projection this is stored, as its first plane. Measurements of one
    plate in folders of their own are its acquisitions.

    Raises:
        UserError: several plates, an HTD that is none, no image, or none that can be read.
    """
    below = list_folder(folder)
    htd = _find_htd(below)
    files, left_out = _files(below)
    metadata, unreadable = tiff_metadata.read_single([file.path for file in files])
    files, misplaced = _with_agreeing_labels(files, metadata)
    acquisitions = {name: number for number, name in enumerate(sorted({file.folder for file in files}))}
    planes, copies = _planes(files, metadata, htd, acquisitions)
    channels, channel_remarks = _channels(files, planes, metadata, htd)
    wells = {file.well for file in files}
    plate_export = export.build(
        planes,
        channels,
        *tiff_metadata.sizes_and_edges(metadata),
        name=htd.path.stem if htd else files[0].plate,
        layout=lambda _: htd.layout(wells) if htd else layout(wells),
        details=_details(metadata, htd),
        acquisitions={number: name.strip("/") or "0" for name, number in acquisitions.items()},
        unreadable=unreadable,
        left_out=(*left_out, *copies),
        problems=misplaced,
        remarks=channel_remarks,
        resample=resample,
    )
    used = {plane.channel for plane in planes}
    plan_remarks = htd.planned(wells, used, {file.time for file in files}) if htd else ()
    return replace(plate_export, remarks=(*plate_export.remarks, *plan_remarks))


# ---------------------------------------------------------------- the files


def _files(below: Folder) -> tuple[list[_File], list[LeftOut]]:
    """Returns the images, and the thumbnails beside them; all of one plate."""
    files: list[_File] = []
    left_out: list[LeftOut] = []
    for name in sorted(below.files):
        match = _PATH.fullmatch(name)
        path = below.root / name
        if match is None:
            if PurePosixPath(name).suffix.lower() in _IMAGES:
                left_out.append(LeftOut(path, "unknown name"))
            continue
        well = normal_well(match["well"])
        wave, time, step = (int(match[part]) if match[part] else None for part in ("wave", "time", "step"))
        if match["thumb"]:
            left_out.append(LeftOut(path, "thumbnail", well, f"w{wave or 1}"))
        else:
            site = match["site"] or "1"
            files.append(_File(path, match["folder"], match["plate"], well, site, wave or 1, time, step))
    if not files:
        raise UserError(
            f"{below.root}: no image of MetaXpress; names such as PLATE_B02_s1_w1.TIF are expected, "
            "also below TimePoint_1 and ZStep_1"
        )
    export.check_one_plate((file.plate for file in files), below.root)
    return files, left_out


def _with_agreeing_labels(
    files: Sequence[_File], metadata: Mapping[Path, TiffMetadata]
) -> tuple[list[_File], list[Problem]]:
    """Returns the files whose name and stage label agree, and the others as problems."""
    kept_files: list[_File] = []
    problems: list[Problem] = []
    for file in files:
        label = _LABEL.match(metadata[file.path].planes[0].label) if file.path in metadata else None
        place = (normal_well(label["well"]), int(label["site"])) if label else None
        if label is None or place == (file.well, int(file.site)):
            kept_files.append(file)
        else:
            text = f"{file.path.name} says that it is {label[0]!r}"
            problems.append(Problem(FieldKey(file.well, file.site), text, "misplaced"))
    if not kept_files:
        raise UserError(f"no image is where its name says; {problems[0].text}")
    return kept_files, problems


# ---------------------------------------------------------------- planes, copies, projections


def _planes(
    files: Sequence[_File],
    metadata: Mapping[Path, TiffMetadata],
    htd: Htd | None,
    acquisitions: Mapping[str, int],
) -> tuple[list[Described], list[LeftOut]]:
    """Returns the planes to store, and the files that are copies or projections of them."""
    flat = htd is not None and htd.first("ZSeries").upper() == "FALSE"
    originals, copies = _without_copies(files, metadata, flat)
    # Beside numbered steps an image without a number is their projection.
    stepped = {(*file.place, file.time) for file in originals if file.step}
    projected = {file for file in originals if _is_projection(file, stepped, metadata)}
    stacked = {(file.folder, file.wave) for file in originals if file not in projected}
    kept_files = [
        file for file in originals if file not in projected or (file.folder, file.wave) not in stacked
    ]
    plane_counts = Counter((*file.place, file.time) for file in kept_files)
    planes = [
        Described(
            FieldKey(file.well, file.site, acquisitions[file.folder]), file.path, file.time or 0, file.wave,
            _plane_number(file, metadata, alone=plane_counts[*file.place, file.time] == 1),
            metadata[file.path].planes[0] if file.path in metadata else PlaneMetadata(),
        )
        for file in kept_files
    ]  # fmt: skip
    left_out = [LeftOut(file.path, "copy", file.well, f"w{file.wave}") for file in copies]
    projections = (file for file in originals if file in projected and file not in kept_files)
    left_out += [LeftOut(file.path, "projection", file.well, f"w{file.wave}") for file in projections]
    return planes, left_out


def _without_copies(
    files: Sequence[_File], metadata: Mapping[Path, TiffMetadata], flat: bool
) -> tuple[list[_File], list[_File]]:
    """Returns the files that are planes of their own, and those that are copies of another one."""
    # The first of equal files is the plane; ZStep_0, which holds projections, comes last.
    ordered = sorted(files, key=lambda file: (file.time or 0, file.step == 0, file.step or 0))
    originals: dict[Hashable, _File] = {}
    for file in ordered:
        originals.setdefault(_identity(file, metadata.get(file.path), flat), file)
    unique_files = set(originals.values())
    return list(originals.values()), [file for file in ordered if file not in unique_files]


def _identity(file: _File, tiff: TiffMetadata | None, flat: bool) -> Hashable:
    """Returns what is equal for copies: the height, time and GUID of a plane of one channel of a field."""
    names = ("z-position", "acquisition-time-local", "plane-guid", "Z Projection Method")
    z, moment, *identifiers = (tiff.facts.get(name, "") if tiff else "" for name in names)
    if z and moment:
        return *file.place, z, moment, *identifiers
    # A file without height and time is itself, or the one plane of its time where the HTD has no z.
    return (*file.place, file.time) if flat else file


def _is_projection(
    file: _File,
    stepped: Container[tuple[str, str, str, int, int | None]],
    metadata: Mapping[Path, TiffMetadata],
) -> bool:
    # As the file states; without a statement what lies in ZStep_0, or beside the steps of its channel.
    tiff = metadata.get(file.path)
    if tiff is not None and tiff.source == "MetaSeries":
        return bool(tiff.planes[0].projection)
    return file.step == 0 or (file.step is None and (*file.place, file.time) in stepped)


def _plane_number(file: _File, metadata: Mapping[Path, TiffMetadata], alone: bool) -> int:
    """Returns the number of a plane: its folder's, or that of its file where it is alone in its channel."""
    if not alone:
        return file.step or 1
    stated_step = number(metadata[file.path].facts.get("Z Step")) if file.path in metadata else None
    return int(stated_step) if stated_step and stated_step > 0 else 1


def _channels(
    files: Sequence[_File],
    planes: Iterable[Described],
    metadata: Mapping[Path, TiffMetadata],
    htd: Htd | None,
) -> tuple[dict[int, Channel], list[str]]:
    """Returns wavelength -> channel, named by the HTD, else by the files; and remarks where they differ."""
    stated_names: dict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
    corrections: dict[int, Counter[str]] = defaultdict(Counter)
    for file in files:
        if file.path in metadata:
            facts = metadata[file.path].facts
            stated_names[file.wave][facts.get("_IllumSetting_", ""), facts.get("wavelength", "")] += 1
            applied = [
                f"{key} {facts[key]}" for key in _CORRECTIONS if facts.get(key, "").lower() not in _OFF
            ]
            corrections[file.wave][", ".join(applied)] += 1
    channels: dict[int, Channel] = {}
    remarks = []
    for wave in sorted({plane.channel for plane in planes}):
        setting, emission = stated_names[wave].most_common(1)[0][0] if stated_names[wave] else ("", "")
        planned_name = htd.wave_name(wave) if htd else ""
        if planned_name and setting and planned_name != setting:
            remarks.append(
                f"w{wave} is {planned_name!r} in the HTD, {setting!r} in its files; the HTD's is kept"
            )
        name = fields.unique(planned_name or setting or f"w{wave}", [c.name for c in channels.values()])
        corrected = next((correction for correction, _ in corrections[wave].most_common() if correction), "")
        if corrected and len(corrections[wave]) > 1:
            count, total = corrections[wave][corrected], corrections[wave].total()
            remarks.append(f"{name}: {count} of {total} files are corrected ({corrected}), others otherwise")
        channels[wave] = replace(fields.channel(name, None, number(emission)), corrected=corrected)
    return channels, remarks


def _details(metadata: Mapping[Path, TiffMetadata], htd: Htd | None) -> dict[str, object]:
    facts = next(iter(metadata.values())).facts
    details = {
        "instrument": facts.get("ApplicationName", "") and "ImageXpress",
        "software": f"{facts.get('ApplicationName', '')} {facts.get('ApplicationVersion', '')}".strip(),
        "objective": facts.get("_MagSetting_", ""),
        "numerical aperture": facts.get("_MagNA_", ""),
        "binning": facts.get("camera-binning-x", ""),
        "description": htd.first("Description") if htd else "",
        "plate id": htd.first("UniquePlateIdentifier") if htd else "",
    }
    return {"reader": "imagexpress", **details}


# ---------------------------------------------------------------- the HTD file

# Seen in exports of MetaXpress 6.7; they repeat the file in each folder, and plan times and wavelengths of
# which there is no file: it says what a plate was planned to be, the images what it is.


@dataclass(frozen=True)
class Htd:
    """The HTD file, key -> values."""

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
        rows, columns = (
            whole({key: self.first(key)}, key, str(self.path), 0) for key in ("YWells", "XWells")
        )
        if not rows or not columns:
            return layout(set(wells))
        if rows > MOST_ROWS or columns > MOST_COLUMNS:
            raise UserError(
                f"{self.path}: {rows} rows and {columns} columns; at most {MOST_ROWS} and {MOST_COLUMNS} "
                "are expected"
            )
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


def _find_htd(below: Folder) -> Htd | None:
    """Returns the HTD of the export below a folder, None where there is none.

    Raises:
        UserError: several, of several exports; one that cannot be read.
    """
    if not (name := nearest_file(below, ".htd", "exports")):
        return None
    path = below.root / name
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
        # A space follows each comma; without `skipinitialspace` quotes behind it would be part of the value.
        lines = csv_rows(text, skipinitialspace=True)
    except csv.Error as error:
        raise UserError(f"{path} cannot be understood: {error}") from None
    facts = {line[0]: [value.strip() for value in line[1:]] for line in lines if len(line) > 1}
    if "HTSInfoFile" not in facts:
        raise UserError(f"{path} has no line HTSInfoFile: damaged, or no file of MetaXpress")
    return Htd(path, facts)
