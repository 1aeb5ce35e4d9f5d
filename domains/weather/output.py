"""Writers: members go into Zarr, NetCDF or GRIB as they are made, never all at once in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from domains.weather.containers import Channel, Ensemble
from domains.weather.data import GRIB
from domains.weather.grib import GribWriter
from suite.errors import InputError

CHUNK = 16  # members per chunk of the file
FOLDER_NAME = "members.zarr"  # where the output is a folder


class Writer(Protocol):
    """Takes `(S, N, C, H, W)` in file order for a date and the members from index `first` on."""

    def write(self, date: int, first: int, values: NDArray[np.float32]) -> None: ...

    def close(self) -> None: ...


def open_writer(path: Path, like: Ensemble, numbers: range, total: int, attributes: dict[str, Any]) -> Writer:
    """The writer for the suffix of `path`.

    Args:
        path: temporary name of the output, with its final suffix.
        like: the input, whose coordinates and attributes the output keeps.
        numbers: members that are written, of `total`.
        attributes: of the run, added to those of the file.

    Raises:
        InputError: another suffix.
    """
    suffix = path.suffix.lower()
    if suffix in GRIB:
        return GribWriter(path, like, numbers, total)
    if suffix == ".zarr":
        return ZarrWriter(path, like, numbers, attributes)
    if suffix in (".nc", ".nc4"):
        return NetCDFWriter(path, like, numbers, attributes)
    raise InputError(f"{path.name}: members are written as .zarr, .nc or .grib; choose such a name for -o.")


def is_folder(path: Path) -> bool:
    """Whether an output name means a folder, for the members as Zarr and the report: it has no suffix, or is a plain folder."""
    return not path.suffix or (path.is_dir() and path.suffix.lower() not in (".zarr", ".nc", ".nc4", *GRIB))


def check_suffix(path: Path) -> None:
    """Refuse an output name no writer knows, before anything is computed."""
    if path.suffix.lower() not in (".zarr", ".nc", ".nc4", *GRIB) and not is_folder(path):
        raise InputError(f"{path}: members are written as .zarr, .nc or .grib; choose such a name for -o.")


# --- the frame: coordinates and attributes ----------------------------------------------------------------------------


def _is_scalar(like: Ensemble, name: str) -> bool:
    return name not in like.coordinates or like.coordinates[name].ndim == 0


def field_dims(like: Ensemble, channel: Channel) -> tuple[str, ...]:
    """Axes of a variable of the output, in order."""
    dims = ["number"]
    dims += [] if _is_scalar(like, "time") and len(like.time) == 1 else ["time"]
    dims += [] if _is_scalar(like, "step") and len(like.step) == 1 else ["step"]
    dims += [channel.level_dim] if channel.stacked and channel.level_dim else []
    if like.grid.point_dim is not None:
        return (*dims, like.grid.point_dim)
    dims += [] if like.grid.file_latitude is None else ["latitude"]
    return (*dims, *([] if like.grid.file_longitude is None else ["longitude"]))


def frame(like: Ensemble, numbers: range, attributes: dict[str, Any]) -> xr.Dataset:
    """Everything of the output but the fields."""
    coordinates: dict[str, Any] = {
        "number": ("number", np.asarray(numbers, np.int64), {"standard_name": "realization", "units": "1"})
    }
    dims = {d for c in like.channels for d in field_dims(like, c)}
    time = ("time" in dims, like.time, {"standard_name": "forecast_reference_time"})
    step = ("step" in dims, like.step, {"standard_name": "forecast_period"})
    for name, (axis, values, attrs) in {"time": time, "step": step}.items():
        if name in like.coordinates:
            original = like.coordinates[name]
            kept = values if original.dtype.kind in "mM" else np.atleast_1d(original.values)
            attrs = {k: v for k, v in original.attrs.items() if k not in ("units", "calendar")} | attrs
            if original.dtype.kind not in "mM" and "units" in original.attrs:
                attrs["units"] = original.attrs["units"]
            coordinates[name] = (name, kept, attrs) if axis else ((), kept[0], attrs)
    if "time" in like.coordinates and "step" in like.coordinates:
        index = tuple(slice(None) if n in dims else 0 for n in ("time", "step"))
        axes = tuple(n for n in ("time", "step") if n in dims)
        coordinates["valid_time"] = (axes, like.valid_time()[index], {"standard_name": "time"})
    grid = like.grid
    for name, degrees, units in (
        ("latitude", grid.file_latitude, "degrees_north"),
        ("longitude", grid.file_longitude, "degrees_east"),
    ):
        if degrees is not None:
            coordinates[name] = (name, degrees, {"standard_name": name, "units": units})
    for channel in like.channels:
        if channel.level_dim and channel.stacked:
            levels = [c.level for c in like.channels if c.name == channel.name]
            coordinates[channel.level_dim] = (channel.level_dim, np.asarray(levels))
        elif channel.level_dim and len({c.level for c in like.channels}) == 1:
            coordinates[channel.level_dim] = ((), channel.level)
    history = "\n".join(str(x) for x in (attributes.get("history"), like.attributes.get("history")) if x)
    attrs_all = {**like.attributes, **attributes, "history": history, "Conventions": "CF-1.8"}
    return xr.Dataset(coords=coordinates, attrs=attrs_all)


def variables(like: Ensemble) -> dict[str, list[int]]:
    """Channels of each variable of the output."""
    out: dict[str, list[int]] = {}
    for index, channel in enumerate(like.channels):
        out.setdefault(channel.name, []).append(index)
    return out


def field_attributes(channel: Channel) -> dict[str, Any]:
    """Attributes of a variable of the output."""
    attributes = {k: v for k, v in channel.attributes.items() if isinstance(v, str | int | float)}
    return {"units": channel.units, **attributes} if channel.units else attributes


class _ArrayWriter:
    """What Zarr and NetCDF share: arrays that take a region."""

    arrays: dict[str, Any]

    def __init__(self, like: Ensemble, numbers: range) -> None:
        self.like, self.numbers = like, numbers
        self.index = variables(like)

    def layout(self, name: str) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...], dict[str, Any]]:
        """Dims, shape, chunks and attributes of a variable."""
        like, channels = self.like, self.index[name]
        first = like.channels[channels[0]]
        dims = field_dims(like, first)
        sizes = {
            "number": len(self.numbers), "time": len(like.time), "step": len(like.step),
            "latitude": like.grid.shape[0], "longitude": like.grid.shape[1],
            first.level_dim: len(channels), like.grid.point_dim: like.grid.shape[1],
        }  # fmt: skip
        shape = tuple(sizes[d] for d in dims)
        chunks = tuple({"number": min(CHUNK, sizes["number"]), "time": 1, "step": 1}.get(d, sizes[d]) for d in dims)
        return dims, shape, chunks, field_attributes(first)

    def write(self, date: int, first: int, values: NDArray[np.float32]) -> None:
        for name, channels in self.index.items():
            dims = self.layout(name)[0]
            part = values[:, :, channels].transpose(1, 0, 2, 3, 4)  # number, step, level, latitude, longitude
            kept = {"number": 0, "step": 1, "latitude": 3, "longitude": 4, self.like.grid.point_dim: 4}
            level = self.like.channels[channels[0]].level_dim
            axes = [2 if d == level else kept[d] for d in dims if d != "time"]
            part = part.reshape([part.shape[a] for a in axes])
            where: list[Any] = [slice(first, first + values.shape[1])]
            where += [date if d == "time" else slice(None) for d in dims[1:]]
            self.arrays[name][tuple(where)] = part


class ZarrWriter(_ArrayWriter):
    """Zarr, format 2 (which every reader knows); one chunk holds whole maps of 16 members."""

    def __init__(self, path: Path, like: Ensemble, numbers: range, attributes: dict[str, Any]) -> None:
        import zarr

        super().__init__(like, numbers)
        self.path = path
        frame(like, numbers, attributes).to_zarr(path, mode="w", zarr_format=2, consolidated=False)
        group = zarr.open_group(path, mode="r+", zarr_format=2)
        self.arrays = {}
        for name in self.index:
            dims, shape, chunks, attrs = self.layout(name)
            coordinates = " ".join(c for c in ("valid_time", "step", "time") if c not in dims)
            self.arrays[name] = group.create_array(
                name, shape=shape, chunks=chunks, dtype="float32", fill_value=np.nan,
                attributes={**attrs, "_ARRAY_DIMENSIONS": list(dims), "coordinates": coordinates},
            )  # fmt: skip

    def close(self) -> None:
        import zarr

        zarr.consolidate_metadata(str(self.path), zarr_format=2)


class NetCDFWriter(_ArrayWriter):
    """NetCDF 4."""

    def __init__(self, path: Path, like: Ensemble, numbers: range, attributes: dict[str, Any]) -> None:
        import h5netcdf

        super().__init__(like, numbers)
        frame(like, numbers, attributes).to_netcdf(path, engine="h5netcdf")
        self.file = h5netcdf.File(path, "a")
        self.arrays = {}
        for name in self.index:
            dims, shape, chunks, attrs = self.layout(name)
            for dim, size in zip(dims, shape, strict=True):
                if dim not in self.file.dimensions:
                    self.file.dimensions[dim] = size
            variable = self.file.create_variable(
                name, dims, "f4", fillvalue=np.float32(np.nan), chunks=chunks, compression="gzip", compression_opts=1
            )
            variable.attrs.update(attrs)
            variable.attrs["coordinates"] = " ".join(c for c in ("valid_time", "step", "time") if c not in dims)
            self.arrays[name] = variable

    def close(self) -> None:
        self.file.close()
