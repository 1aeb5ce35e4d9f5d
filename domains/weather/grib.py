"""GRIB 1 and 2 through cfgrib and eccodes (the extra `grib`): read as one data set, written by template."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from domains.weather.containers import Channel, Ensemble
from domains.weather.conventions import LEVELS
from suite.errors import InputError
from suite.files import reading

MOST_GRIB1 = 255  # `number` has one byte in edition 1
MISSING = 9999.0


def _modules() -> tuple[Any, Any]:
    try:
        import cfgrib
        import eccodes
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(f"GRIB needs cfgrib and eccodes: pip install 'diffsuite[grib]' ({error}).") from None
    return cfgrib, eccodes


def open_grib(path: Path) -> xr.Dataset:
    """All hypercubes on the first one's grid as one data set; the control forecast is member 0.

    Raises:
        InputError: the extra is missing, or the file is no readable GRIB.
    """
    cfgrib, _ = _modules()
    with path.open("rb") as file:
        if file.read(4) != b"GRIB":
            raise InputError(f"{path}: is no GRIB file (it does not start with GRIB).")
    _check_whole(path)
    with reading(path, "is no readable GRIB file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = cfgrib.open_datasets(str(path), backend_kwargs={"indexpath": ""})
    groups: dict[tuple[str, str], list[xr.DataArray]] = {}
    for part in parts:
        for name, array in part.data_vars.items():
            groups.setdefault((str(name), _level_key(array)), []).append(_with_number(array))
    arrays = [_joined(group, path) for group in groups.values()]
    names = [str(a.name) for a in arrays]
    shape = {d: n for d, n in arrays[0].sizes.items() if d not in LEVELS}
    same = [a for a in arrays if {d: n for d, n in a.sizes.items() if d not in LEVELS} == shape]
    unique = [a if names.count(str(a.name)) == 1 else a.rename(f"{a.name}_{a.attrs['_level']:g}") for a in same]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = xr.merge(unique, compat="override", combine_attrs="drop", join="override")
    for array in unique:
        merged[array.name].attrs = array.attrs
    return merged


def _check_whole(path: Path) -> None:
    """Walk the messages: each has `GRIB`, its edition and length in front and `7777` behind; padding between them is passed over.

    Raises:
        InputError: a message ends before its length says.
    """
    size, at, count = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            if head[:4] != b"GRIB":
                skip = (head + file.read(1 << 16)).find(b"GRIB", 1)
                at += skip if skip > 0 else 1 << 16
                continue
            count += 1
            edition = head[7] if len(head) > 7 else 0
            length = int.from_bytes(head[4:7], "big") if edition == 1 else int.from_bytes(head[8:16], "big")
            if edition == 1 and length & 0x800000:  # longer than 24 bits say: eccodes counts in 120 bytes
                return
            file.seek(at + length - 4)
            if length < 8 or at + length > size or file.read(4) != b"7777":
                raise InputError(f"{path}: is cut off or damaged in message {count} at byte {at} of {size}.")
            at += length


def _level_key(array: xr.DataArray) -> str:
    kind = str(array.attrs.get("GRIB_typeOfLevel", ""))
    scalar = kind in array.coords and not array[kind].dims
    return f"{kind} {float(array[kind])}" if scalar else kind


def _with_number(array: xr.DataArray) -> xr.DataArray:
    """A scalar level into the attributes, where arrays of other levels cannot overwrite it; control runs get `number` 0."""
    kind = str(array.attrs.get("GRIB_typeOfLevel", ""))
    if kind in array.coords and not array[kind].dims and kind not in ("surface", "meanSea"):
        array.attrs |= {"_level": float(array[kind]), "_level_dim": kind}
    array = array.drop_vars([c for c in array.coords if c in LEVELS and not array[c].dims])
    ensemble = array.attrs.get("GRIB_dataType") in ("cf", "pf") or int(array.attrs.get("GRIB_totalNumber", 0)) > 1
    if "number" not in array.dims:
        array = array.expand_dims("number") if ensemble and "number" in array.coords else array
        array = array.drop_vars("number") if "number" in array.coords and "number" not in array.dims else array
    return array


def _joined(group: list[xr.DataArray], path: Path) -> xr.DataArray:
    if len(group) == 1:
        return group[0]
    if not all("number" in array.dims for array in group):
        raise InputError(f"{path}: holds {group[0].name} several times in hypercubes that do not join to one ensemble.")
    with reading(path, f"holds {group[0].name} in hypercubes that do not join to one ensemble"):
        ordered = sorted(group, key=lambda array: int(array["number"].values.min()))
        return xr.concat(ordered, "number", coords="minimal", compat="override", combine_attrs="override")


# --- writing ----------------------------------------------------------------------------------------------------------


class GribWriter:
    """Writes members as copies of the input's messages with other values.

    Args:
        path: of the output.
        source: the ensemble whose file gives the templates.
        total: members of the whole run.

    Raises:
        InputError: the source is no GRIB file, or edition 1 and more than 255 members.
    """

    def __init__(self, path: Path, source: Ensemble, numbers: range, total: int) -> None:
        _, self.codes = _modules()
        if source.path.is_dir() or source.path.open("rb").read(4) != b"GRIB":
            raise InputError(
                f"{source.path}: is no GRIB file, and GRIB is written by its template; write .zarr or .nc."
            )
        self.source, self.numbers, self.total = source, numbers, total
        self.templates = self._index()
        if total > MOST_GRIB1 and any(self._edition(t) == 1 for t in self.templates.values()):
            raise InputError(
                f"{path}: GRIB 1 holds at most {MOST_GRIB1} members and {total} are asked for; write .zarr or .nc."
            )
        self.file = path.open("wb")

    def _edition(self, message: bytes) -> int:
        return message[7]

    def _index(self) -> dict[tuple[Any, ...], bytes]:
        """One message of each field, time and lead."""
        out: dict[tuple[Any, ...], bytes] = {}
        with self.source.path.open("rb") as file:
            for handle in self._messages(file):
                out.setdefault(self._key(handle), self.codes.codes_get_message(handle))
                self.codes.codes_release(handle)
        return out

    def _messages(self, file: Any) -> Iterator[Any]:
        while (handle := self.codes.codes_grib_new_from_file(file)) is not None:
            yield handle

    def _key(self, handle: Any) -> tuple[Any, ...]:
        get = self.codes.codes_get
        kind = get(handle, "typeOfLevel")
        level = None if kind in ("surface", "meanSea") else float(get(handle, "level"))
        time = f"{get(handle, 'dataDate'):08d}{get(handle, 'dataTime'):04d}"
        self.codes.codes_set(handle, "stepUnits", 1)
        return int(get(handle, "paramId")), level, time, float(get(handle, "endStep"))

    def _template(self, channel: Channel, parameter: int, date: int, step: int) -> bytes:
        time = str(self.source.time[date].astype("datetime64[m]")).translate({ord(c): None for c in "-T:"})
        key = (parameter, channel.level, time, float(self.source.lead_hours()[step]))
        if key not in self.templates:
            raise InputError(f"{self.source.path}: has no message of {channel.label} at {time} +{key[3]:g} h.")
        return self.templates[key]

    def write(self, date: int, first: int, values: NDArray[np.float32]) -> None:
        """`values` `(S, N, C, H, W)` in file order, of the members from index `first` on."""
        for s, c in np.ndindex(values.shape[0], values.shape[2]):
            channel = self.source.channels[c]
            parameter = int(self.source.arrays[c].attrs["GRIB_paramId"])
            template = self._template(channel, parameter, date, s)
            for i in range(values.shape[1]):
                self._message(template, self.numbers[first + i], values[s, i, c])

    def _message(self, template: bytes, number: int, field: NDArray[np.float32]) -> None:
        codes = self.codes
        handle = codes.codes_new_from_message(template)
        try:
            if self._edition(template) == 2 and not codes.codes_is_defined(handle, "perturbationNumber"):
                instant = codes.codes_get(handle, "stepType") == "instant"
                codes.codes_set(handle, "productDefinitionTemplateNumber", 1 if instant else 11)
            codes.codes_set(handle, "dataType", "pf")
            for name, value in (("number", number), ("totalNumber", self.total)):
                if codes.codes_is_defined(handle, name):
                    codes.codes_set(handle, name, value)
            missing = ~np.isfinite(field)
            if missing.any():
                codes.codes_set(handle, "bitmapPresent", 1)
                codes.codes_set(handle, "missingValue", MISSING)
            codes.codes_set(handle, "bitsPerValue", max(16, int(codes.codes_get(handle, "bitsPerValue"))))
            codes.codes_set_values(handle, np.where(missing, MISSING, field).astype(np.float64).ravel())
            codes.codes_write(handle, self.file)
        finally:
            codes.codes_release(handle)

    def close(self) -> None:
        self.file.close()
