"""Several exports of one plate become one plate of several acquisitions: which field shows which place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count, product
from math import hypot, isclose

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Export, Field, FieldKey, Plate
from hpc_isl.plates.readers import export as exports_of
from hpc_isl.plates.readers.plane_checks import listed

NEAR = 0.5  # of a field's edge: fields whose centres are nearer show the same place


def merged(
    exports: Sequence[Export], names: Sequence[str], by_name: bool = False, resample: bool = False
) -> Export:
    """Returns one export, of which each given one is an acquisition, in the order given.

    A field of a later export gets the name of the earlier field at the same place of its well, or one of its
    own. Where positions are not known, and with `by_name`, names stay as they are.

    Args:
        names: of the exports, for messages and as names of the acquisitions.
        resample: fields of later exports with pixels of another size get those of the first.

    Raises:
        UserError: an export of several acquisitions; other plate formats or sizes of a pixel; no field of an
            export lies where one of the first does.
    """
    for name, export in zip(names, exports, strict=True):
        if len(export.plate.acquisitions) > 1:
            raise UserError(
                f"source: {name} holds {len(export.plate.acquisitions)} measurements itself; give it alone, "
                "or each of its measurements as one of the sources"
            )
    # OME-Zarr may call its only acquisition 1: fields of two exports are compared by well and name.
    exports = [exports_of.as_acquisition(e, 0, [c.name for c in e.plate.channels]) for e in exports]
    first = exports[0].plate
    parts, remarks, others = [exports[0]], list[str](), list[Field]()
    for name, export in zip(names[1:], exports[1:], strict=True):
        size, first_size = export.plate.pixel_um, first.pixel_um
        if size and first_size and not isclose(size, first_size, rel_tol=0.005):
            if not resample:
                raise UserError(
                    f"source: {names[0]} has pixels of {first_size:g} µm, {name} of {size:g} µm; "
                    f"resample=true stores {name} in pixels of {first_size:g} µm too"
                )
            remarks.append(f"{name}: pixels of {size:g} µm are resampled to {first_size:g} µm")
            export = _with_pixels(export, size, first_size)
        part = export
        if not by_name:
            # Of a third export a field may lie where the second has one and the first none.
            located = [field for field in others if field.position_um is not None]
            earlier = replace(first, fields=(*first.fields, *located))
            partners = _partners(earlier, export.plate, names[0], name)
            part = _renamed(export, partners, [*first.fields, *others])
        parts.append(part)
        keys, first_keys = ({field.key for field in plate.fields} for plate in (part.plate, first))
        others += [field for field in part.plate.fields if field.key not in first_keys]
        remarks.append(
            f"{name}: {len(keys & first_keys)} of {len(keys)} fields lie where one of {names[0]} does"
        )
        if unpaired := [str(key) for key in sorted(keys - first_keys, key=lambda key: key.place)]:
            remarks.append(f"{name}: without a partner in {names[0]}: {len(unpaired)} ({listed(unpaired)})")
    named_parts = [
        replace(part, plate=replace(part.plate, acquisitions={0: name}))
        for name, part in zip(names, parts, strict=True)
    ]
    whole = exports_of.merged(named_parts, names)
    return replace(whole, remarks=(*whole.remarks, *remarks))


def _partners(first: Plate, later: Plate, first_name: str, name: str) -> dict[FieldKey, FieldKey]:
    """Returns field of the later plate -> field of the first that lies at its place; each at most once."""
    partners: dict[FieldKey, FieldKey] = {}
    nearest = []
    located = 0
    for well in later.wells:
        centers, first_centers = (
            {field.key: _center(field, plate) for field in plate.fields if field.key.well == well}
            for plate in (later, first)
        )
        if not first_centers:
            continue
        if None in centers.values() or None in first_centers.values():
            partners |= {key: key for key in centers.keys() & first_centers.keys()}
            continue
        located += len(centers)
        edge = max(first.fields[0].shape[-2:]) * (first.pixel_um or 1.0)
        distances = sorted(
            (hypot(a[0] - b[0], a[1] - b[1]), key.place, partner.place, key, partner)
            for (key, a), (partner, b) in product(centers.items(), first_centers.items())
            if a is not None and b is not None
        )
        nearest.append(distances[0][0])
        paired: set[FieldKey] = set()
        for distance, _, _, key, partner in distances:
            if distance < NEAR * edge and key not in partners and partner not in paired:
                partners[key] = partner
                paired.add(partner)
    if located and not partners:
        raise UserError(
            f"no field of {name} lies where one of {first_name} does: the nearest are {min(nearest):,.0f} µm "
            "apart. If the two count positions from different points, match=name pairs fields by their names"
        )
    return partners


def _center(field: Field, plate: Plate) -> tuple[float, float] | None:
    """Returns (y, x) of a field's middle on the stage in µm, or None where it is not known."""
    if field.position_um is None or plate.pixel_um is None:
        return None
    y, x = (
        start + (length - 1) / 2 * plate.pixel_um
        for start, length in zip(field.position_um, field.shape[-2:], strict=True)
    )
    return y, x


def _with_pixels(export: Export, size: float, new_size: float) -> Export:
    """Returns the export with pixels of the wanted size: planes are resampled, middles of fields stay."""
    fields = []
    files = dict(export.files)
    for field in export.plate.fields:
        y, x = (round(length * size / new_size) for length in field.shape[-2:])
        position = field.position_um
        if position is not None:
            old_shape, new_shape = field.shape[-2:], (y, x)
            inward = [
                ((a - 1) * size - (b - 1) * new_size) / 2 for a, b in zip(old_shape, new_shape, strict=True)
            ]
            position = position[0] + inward[0], position[1] + inward[1]
        file_size = (field.shape[3], field.shape[4])
        files[field.key] = tuple(replace(f, size=f.size or file_size) for f in files.get(field.key, ()))
        fields.append(replace(field, shape=(*field.shape[:3], y, x), position_um=position))
    return replace(
        export, plate=replace(export.plate, fields=tuple(fields), pixel_um=new_size), files=files
    )  # fmt: skip


def _renamed(export: Export, partners: Mapping[FieldKey, FieldKey], earlier: Sequence[Field]) -> Export:
    """Returns the export with fields called as their partners are; the others keep names that are free."""
    used_names = {(field.key.well, field.key.name.lower()) for field in earlier}
    new_names = {key: partner.name for key, partner in partners.items()}
    for key in sorted(
        (f.key for f in export.plate.fields if f.key not in partners), key=lambda key: key.place
    ):
        numbered = (str(number) for number in count(1))
        candidates = chain([key.name], numbered)
        new_names[key] = next(name for name in candidates if (key.well, name.lower()) not in used_names)
        used_names.add((key.well, new_names[key].lower()))
    keys = {key: replace(key, name=name) for key, name in new_names.items()}
    fields = tuple(
        replace(field, key=keys[field.key])
        if keys[field.key] == field.key
        # Its name in the export, by which a person finds its files.
        else replace(field, key=keys[field.key], details={**field.details, "field_of_export": field.key.name})
        for field in export.plate.fields
    )
    return replace(
        export,
        plate=replace(export.plate, fields=fields),
        files={keys.get(key, key): plane_files for key, plane_files in export.files.items()},
        problems=tuple(p._replace(key=keys.get(p.key, p.key)) for p in export.problems),
    )
