"""Plates and their fields: pixels, labels and what is known about them, as arrays and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.learning.data.fields import heights
from hpc_isl.learning.data.pixels import REDUCE, choose_planes, project
from hpc_isl.plates import metadata, store
from hpc_isl.plates.plate import Channel, FieldKey, normal_well

if TYPE_CHECKING:
    import dask.array as da
    import pandas as pd
    import xarray as xr


def open_plate(path: str | Path) -> Plate:
    """Returns the plate in a folder; no pixel is read.

    Raises:
        UserError: the folder holds no plate that `convert` has made or `adopt` has measured.
    """
    return Plate(store.open_plate(Path(path)))


class Plate:
    """An OME-Zarr plate. Iterating over it gives its fields in plate order.

    `plate["B03/1"]` is one field, `plate["B03"]` a tuple of all fields of a well.
    """

    def __init__(self, index: store.Index) -> None:
        self._index = index

    def __repr__(self) -> str:
        channels = ", ".join(channel.name for channel in self.channels)
        return (
            f"<Plate {self.name}: {many(len(self), 'field')} in {many(len(self.wells), 'well')}; {channels}>"
        )

    @property
    def path(self) -> Path:
        return self._index.path

    @property
    def name(self) -> str:
        return self._index.plate.name

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Name, kind (`fluorescent` or label-free), colour and wavelengths in nm of each channel."""
        return tuple(self._index.plate.channels)

    @property
    def wells(self) -> tuple[str, ...]:
        return tuple(self._index.plate.wells)

    @property
    def pixel_um(self) -> float | None:
        """Edge of a pixel at full resolution in µm; None: not known."""
        return self._index.plate.pixel_um

    @property
    def plate_map(self) -> Mapping[str, Mapping[str, str]]:
        """Well -> column -> value, such as treatment and dose."""
        return self._index.plate_map

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(Field(self, field.key) for field in self._index.plate.fields)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self._index.plate.fields)

    def __getitem__(self, name: str) -> Field | tuple[Field, ...]:
        """Raises a `UserError` with the nearest name where the plate has no such well or field."""
        if not isinstance(name, str):
            raise TypeError(f"plate[{name!r}]: a name such as 'B03' or 'B03/1' is meant; see plate.fields")
        well, slash, field = name.partition("/")
        fields_in_well = [candidate for candidate in self if candidate.well == normal_well(well)]
        if not slash and fields_in_well:
            return tuple(fields_in_well)
        for candidate in fields_in_well:
            if candidate.name == field:
                return candidate
        legal_names = [f"{member.well}/{member.name}" for member in fields_in_well] or self.wells
        missing = f"field {name!r}" if fields_in_well else f"well {well!r}"
        raise UserError(
            f"{self.path} has no {missing}; {nearest(name if fields_in_well else well, legal_names)}"
        )

    def statistics(self) -> pd.DataFrame:
        """Returns a row for each plane that was imaged: counts at full resolution, and its focus score."""
        import pandas as pd  # here, because a script that reads pixels need not wait for it

        channels = [channel.name for channel in self.channels]
        rows = [
            {
                "well": field.well, "field": field.name, "acquisition": field.acquisition, "time": time,
                "channel": channels[channel], "plane": plane, **asdict(facts),
            }
            for field in self
            for (time, channel, plane), facts in self._index.statistics[field._key].planes.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)


class Field:
    """One field of view of a plate: an image (t, c, z, y, x) of counts as the camera gave them."""

    def __init__(self, plate: Plate, key: FieldKey) -> None:
        self.plate = plate
        self._key = key
        self._index = plate._index

    def __repr__(self) -> str:
        return f"<Field {self.plate.name} {self._key}: {' × '.join(map(str, self.shape))} (t, c, z, y, x)>"

    @property
    def well(self) -> str:
        return self._key.well

    @property
    def name(self) -> str:
        return self._key.name

    @property
    def acquisition(self) -> int:
        return self._key.acquisition

    @property
    def path(self) -> Path:
        """The folder of its OME-Zarr image; of an adopted plate the one that holds its labels."""
        return self._index.image(self._key)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(t, c, z, y, x) at full resolution."""
        return self._index.field(self._key).shape

    @property
    def levels(self) -> int:
        """How many levels the pyramid has: level n has 1 / 2ⁿ of the pixels along each edge."""
        return self._index.levels(self._key)

    def read(
        self,
        channel: str,
        plane: int | str | None = "focus",
        level: int = 0,
        box: tuple[int, int, int, int] | None = None,
        time: int = 0,
    ) -> NDArray[Any]:
        """Returns pixels of a channel in counts: (y, x), or (z, y, x) where `plane` is None.

        Args:
            plane: a number; max, mean or min (projections over the planes that were imaged, float32); focus,
                focus+2 (planes) or focus-4um (micrometres); None: all planes that were imaged.
            level: of the pyramid; 0 is full resolution.
            box: (y0, x0, y1, x1) in pixels of that level; None: the whole field.

        Raises:
            UserError: there is no such channel, plane, level, time or box, or the channel was not imaged
                then.
        """
        number = self._index.channel(channel)
        if not 0 <= level < self.levels or not 0 <= time < self.shape[0]:
            raise UserError(
                f"{self!r}: has levels 0 to {self.levels - 1} and times 0 to {self.shape[0] - 1}, "
                f"not level {level} at time {time}"
            )
        planes = self._planes(channel, plane, number, time)  # one, unless they are projected or all wanted
        height, width = (-(-edge // 2**level) for edge in self.shape[-2:])  # levels round odd edges up
        y0, x0, y1, x1 = box or (0, 0, height, width)
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise UserError(
                f"{self!r}: box {box} (y0, x0, y1, x1) is empty or leaves the {height} × {width} pixels of "
                f"level {level}"
            )
        stack = store.read_box(self.path, level, time, number, planes, slice(y0, y1), slice(x0, x1))
        if plane is None:
            return stack
        return project(stack, plane) if plane in REDUCE else stack[0]

    def _planes(self, channel: str, plane: int | str | None, number: int, time: int) -> list[int]:
        # Only planes that were imaged: zeros stored in place of others are no counts.
        focus = self._index.focus(self._key, number, time)
        if not focus:
            raise UserError(f"{self!r}: {channel} was not imaged at time {time}")
        if plane is None:
            return sorted(focus)
        field = self._index.field(self._key)
        try:
            return list(choose_planes(plane, focus, heights(field, channel), self._index.plate.plane_um))
        except UserError as error:
            raise UserError(f"{self!r}, {channel}: {error}") from None

    def to_dask(self, level: int = 0) -> da.Array:
        """Returns all pixels of a level as a lazy array (t, c, z, y, x), in chunks as they are stored."""
        import dask.array as da

        if self._index.adopted is not None:
            pixels = store.open_level(self.path, level)
            chunk_shape = pixels.chunk_layout.read_chunk.shape or pixels.shape
            chunks = [edge or length for edge, length in zip(chunk_shape, pixels.shape, strict=True)]
            return da.from_array(_Pixels(pixels), chunks=chunks, name=False)
        array = da.from_zarr(str(self.path / str(level)))
        return array[None] if array.ndim == 4 else array  # a single time is stored without the axis t

    def to_xarray(self, level: int = 0) -> xr.DataArray:
        """Returns `to_dask` with names of channels, and coordinates y and x in µm on the well.

        Where the size of a pixel is not known, coordinates are in pixels; the attribute `unit` says which.

        Raises:
            UserError: xarray is not installed.
        """
        try:
            import xarray as xr
        except ImportError:
            raise UserError("to_xarray needs xarray: pip install xarray") from None
        pixels = self.to_dask(level)
        multiscale = metadata.read_group(self.path)["ome"]["multiscales"][0]
        transformations = {
            transformation["type"]: transformation
            for transformation in multiscale["datasets"][level]["coordinateTransformations"]
        }
        spatial = {}
        # The plate's own transformations, so that coordinates are those that other programs show.
        for axis, name in enumerate("yx", start=-2):
            start = (
                transformations["translation"]["translation"][axis]
                if "translation" in transformations
                else 0.0
            )
            spatial[name] = start + transformations["scale"]["scale"][axis] * np.arange(pixels.shape[axis])
        channels = [channel.name for channel in self.plate.channels]
        # The plate's own scale is 1 where no size is known.
        unit = "µm" if self.plate.pixel_um else "pixel"
        return xr.DataArray(
            pixels, dims=tuple("tczyx"), coords={"c": channels, **spatial}, name=str(self._key),
            attrs={"unit": unit, "plate": self.plate.name},
        )  # fmt: skip

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of labels on this field, made by people or programs."""
        return tuple(store.label_names(self.path))

    def labels(self, name: str, level: int = 0) -> NDArray[np.uint32]:
        """Returns labels (y, x), or (t, y, x) of a time series: 0 is background, k the k-th object.

        Raises:
            UserError: there are none of that name, or they cannot be read.
        """
        return store.read_labels(self.path, name, level)


class _Pixels:
    """An array of tensorstore as dask asks for one; worker processes get a copy that opens it again."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape, self.ndim, self.dtype = array.shape, array.rank, array.dtype.numpy_dtype

    def __getitem__(self, box: Any) -> NDArray[Any]:
        return np.asarray(self._array[box].read().result())
