"""From Python: xarray in, members out. What is dask-backed is computed block by block, when it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from domains.weather.containers import Ensemble
from domains.weather.conventions import normalise
from domains.weather.generation import attributes, blocks_of
from domains.weather.model import WeatherModel, load_model
from domains.weather.output import CHUNK, field_attributes, field_dims, frame, variables
from domains.weather.pipeline import GenerateConfig, Generator
from suite.config import load_config
from suite.errors import InputError
from suite.run import resolve_device

DIMS = ("time", "step", "number", "_field", "latitude", "longitude")
Made = Callable[[range, range], Any]  # members of some dates `(D, S, N, C, H, W)`, as an array of NumPy or Dask


def as_ensemble(
    data: xr.DataArray | xr.Dataset, *, mask: xr.DataArray | None = None, key: str | None = None
) -> Ensemble:
    """An ensemble, a truth, a ring or a station series in memory, lazy (dask-backed) or not; no field is read here.

    Args:
        data: axes of any of the names that files may have, see docs/weather.md.
        mask: True where the fields exist; elsewhere they are missing, as if they were NaN.
        key: variable (or several, by commas) of a data set.

    Raises:
        InputError: no gridded variable, or an axis that is not understood.
    """
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name=data.name or "field")
    if mask is not None:
        try:
            data = data.where(mask.astype(bool))
        except ValueError as error:
            raise InputError(f"mask: does not fit the data ({error}).") from error
    return normalise(data, Path(str(data.encoding.get("source", "data"))), key)


def generate(
    data: xr.DataArray | xr.Dataset,
    model: str | Path | WeatherModel | None,
    members: int = 50,
    *,
    numbers: range | None = None,
    batch: int = 4 * CHUNK,
    mask: xr.DataArray | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Members of every date of the seeds `data`, as `diffsuite weather generate` writes them.

    The result is lazy where the seeds are dask-backed, and each of its blocks reads the seeds of its own dates only. What is
    to be told of the seeds is a `UserWarning`.

    Args:
        model: a file, the name of a shipped model, a model that was read, or None for the method raw.
        members: how many there are.
        numbers: make only these of them.
        batch: members of a block, at most.
        mask: see `as_ensemble`.
        settings: of `GenerateConfig`: method, steps, seed, seeds, ...

    Raises:
        InputError: see `as_ensemble` and `Generator`; a setting that does not exist, or numbers beyond the members.
    """
    config = load_config(GenerateConfig, None, (), settings)
    if model is None and config.method != "raw":
        raise InputError(f"the method {config.method} needs a fitted model")
    if isinstance(model, str | Path):
        model = load_model(model)
    ensemble = as_ensemble(data, mask=mask, key=config.key)
    maker = Generator(model if config.method != "raw" else None, ensemble, config, resolve_device(config.device))
    ensemble = maker.seeds
    members = min(members, maker.count) if config.method == "raw" else members
    chosen = range(members) if numbers is None else numbers
    if not len(chosen) or chosen.start < 0 or chosen.stop > members:
        raise InputError(f"numbers {chosen.start}:{chosen.stop}: there are {members} members")
    _warn(maker.warnings)
    lazy = any(array.chunks is not None for array in ensemble.arrays)
    return _assembled(maker, chosen, batch, lazy=lazy)


def _assembled(maker: Generator, chosen: range, batch: int, *, lazy: bool) -> xr.Dataset:
    """The data set of all blocks, joined along dates and members."""
    seeds = maker.seeds
    if lazy:
        import dask.array

        join, make = dask.array.concatenate, _later(maker)
    else:
        join, make = np.concatenate, lambda rows, numbers: _block(maker, rows, numbers)
    rows: dict[range, list[Any]] = {}
    for dates, index in blocks_of(seeds, chosen, batch):
        rows.setdefault(dates, []).append(make(dates, chosen[index.start : index.stop]))
    fields = xr.DataArray(join([join(parts, axis=2) for parts in rows.values()], axis=0), dims=DIMS)
    out = frame(seeds, chosen, attributes(maker))
    for name, channels in variables(seeds).items():
        first = seeds.channels[channels[0]]
        dims = field_dims(seeds, first)
        names = {"_field": first.level_dim if first.stacked else None, "longitude": seeds.grid.point_dim}
        part = fields[:, :, :, channels].rename({old: new for old, new in names.items() if new is not None})
        part = part.isel({d: 0 for d in part.dims if d not in dims}).transpose(*dims)
        out[name] = part.assign_attrs(field_attributes(first))
    return out


def _later(maker: Generator) -> Made:
    """Blocks as Dask arrays: the seeds they need enter as what the graph depends on."""
    import dask
    import dask.array

    seeds = maker.seeds

    def make(rows: range, numbers: range) -> Any:
        parts = [array.isel(time=slice(rows.start, rows.stop)).data for array in seeds.arrays]
        shape = (len(rows), len(seeds.step), len(numbers), len(seeds.channels), *seeds.grid.shape)
        block = dask.delayed(_block, pure=False)(maker, rows, numbers, parts)
        return dask.array.from_delayed(block, shape, np.float32)

    return make


def _block(
    maker: Generator, rows: range, numbers: range, parts: list[NDArray[Any]] | None = None
) -> NDArray[np.float32]:
    """Members of some dates in the order of the data, from the seeds `parts` of these dates or else read."""
    known = set(maker.warnings)
    days = maker.days(rows, None if parts is None else maker.seeds.stacked(parts))
    values = maker.members(days, list(numbers))
    _warn([sentence for sentence in maker.warnings if sentence not in known])
    return maker.seeds.grid.to_file(values)


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)
