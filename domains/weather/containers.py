"""The typed containers between files and the work: a grid, a field, an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from suite.errors import InputError

Array = NDArray[np.float32]
FIELD_DIMS = ("time", "step", "number", "latitude", "longitude")


@dataclass(frozen=True)
class Grid:
    """A regular latitude-longitude grid, a ring (1 x N) or a station (1 x 1), in internal order.

    Latitudes descend; longitudes ascend from behind the widest gap, so that a region that crosses a meridian is whole.

    Attributes:
        latitude, longitude: degrees, `(H,)` and `(W,)`.
        rows, columns: where each internal row and column lies in the file.
        file_latitude, file_longitude: as the file has them, in its order; None where it has no such axis.
        point_dim: the file's name of a single spatial axis that is neither (an index along a ring, stations).
    """

    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    file_latitude: NDArray[np.float64] | None
    file_longitude: NDArray[np.float64] | None
    point_dim: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.latitude), len(self.longitude)

    @property
    def periodic(self) -> bool:
        """Whether the longitudes close: one more spacing would arrive at the first again."""
        if len(self.longitude) < 3:
            return False
        return bool(np.isclose(np.diff(self.longitude).mean() * len(self.longitude), 360, atol=0.5))

    @property
    def poles(self) -> bool:
        """Whether the rows reach both poles of a whole circle."""
        if not self.periodic or len(self.latitude) < 3 or len(self.longitude) % 2:
            return False
        gap = abs(float(np.diff(self.latitude).mean()))
        return bool(90 - self.latitude[0] < gap and 90 + self.latitude[-1] < gap)

    def weights(self) -> NDArray[np.float64]:
        """Area of each cell `(H, W)`, mean 1: differences of the sine at the edges between rows."""
        height, width = self.shape
        if height < 2:
            return np.ones((height, width))
        middle = (self.latitude[:-1] + self.latitude[1:]) / 2
        first, last = 1.5 * self.latitude[0] - 0.5 * self.latitude[1], 1.5 * self.latitude[-1] - 0.5 * self.latitude[-2]
        edges = np.clip(np.concatenate([[first], middle, [last]]), -90, 90)
        area = -np.diff(np.sin(np.radians(edges)))
        out: NDArray[np.float64] = np.repeat((area / area.mean())[:, None], width, 1)
        return out

    def same_as(self, other: Grid) -> bool:
        """The same points, whatever the order and convention of either file."""
        if self.shape != other.shape:
            return False
        turn = (self.longitude - other.longitude + 180) % 360 - 180
        return bool(np.allclose(self.latitude, other.latitude, atol=0.01) and np.abs(turn).max() < 0.01)

    def to_file(self, values: NDArray[Any]) -> NDArray[Any]:
        """Internal order `(..., H, W)` to the file's order."""
        out = np.empty_like(values)
        out[..., self.rows[:, None], self.columns] = values
        return out

    def describe(self) -> str:
        """One line for people."""
        height, width = self.shape
        if (height, width) == (1, 1):
            return "a station"
        if height == 1:
            return f"{'a periodic ring' if self.periodic else 'a line'} of {width} points"
        north, south, west, east = self.latitude[0], self.latitude[-1], self.longitude[0], self.longitude[-1]
        turn = "global in longitude" if self.periodic else f"{_degrees(west)} to {_degrees(east)}E"
        return f"{height} x {width} points, {north:g} to {south:g}N, {turn}"


def _degrees(longitude: float) -> str:
    return f"{(longitude + 180) % 360 - 180:g}"


@dataclass(frozen=True)
class Channel:
    """One two-dimensional field of each member: a variable, at one level.

    Attributes:
        name: of the variable in the file.
        level: value of the level, or None.
        level_dim: name of the level's axis or scalar coordinate, or None.
        units: as in the file, in its spelling.
        attributes: of the variable, those that describe the quantity.
        stacked: the level is an axis of the file, not a scalar.
    """

    name: str
    level: float | None
    level_dim: str | None
    units: str
    attributes: dict[str, Any]
    stacked: bool = False

    @property
    def label(self) -> str:
        return self.name if self.level is None else f"{self.name}@{self.level:g}"


@dataclass(frozen=True)
class Ensemble:
    """Forecasts `(time, step, number, channel, latitude, longitude)`, read date by date.

    Attributes:
        path: the file or folder.
        channels: what the members hold.
        arrays: for each channel an array of dims `FIELD_DIMS`, lazy where the format allows it.
        grid: see `Grid`.
        time: initial times `(D,)`.
        step: leads `(S,)`.
        number: of each member `(M,)`; empty where the file has dates but no members.
        coordinates: `time` and `step` as the file has them, for the output.
        attributes: of the file.
        has_number: False where the file has no axis of members (a truth, a single forecast).
        warnings: what had to be assumed.
    """

    path: Path
    channels: tuple[Channel, ...]
    arrays: tuple[xr.DataArray, ...]
    grid: Grid
    time: NDArray[np.datetime64]
    step: NDArray[np.timedelta64]
    number: NDArray[np.int64]
    coordinates: dict[str, xr.DataArray]
    attributes: dict[str, Any]
    has_number: bool
    warnings: tuple[str, ...] = field(default=())

    def values(self, dates: slice | NDArray[np.intp] | None = None, numbers: slice | None = None) -> Array:
        """`(D, S, M, C, H, W)` float32 in internal order, of some dates and members.

        Raises:
            InputError: the values cannot be read.
        """
        chosen = {"time": slice(None) if dates is None else dates, "number": numbers or slice(None)}
        parts = []
        for array in self.arrays:
            try:
                parts.append(array.isel(chosen).values)
            except (OSError, RuntimeError, KeyError, ValueError) as error:
                raise InputError(f"{self.path}: the values of {array.name} cannot be read ({error}).") from error
        return self.stacked(parts)

    def stacked(self, parts: Sequence[NDArray[Any]]) -> Array:
        """`(D, S, M, C, H, W)` in internal order from a part of each of `arrays`, of dims `FIELD_DIMS`."""
        rows, columns = self.grid.rows[:, None], self.grid.columns
        return np.stack([np.asarray(part, np.float32)[..., rows, columns] for part in parts], 3)

    def lead_hours(self) -> NDArray[np.float64]:
        """Leads `(S,)` in hours."""
        hours: NDArray[np.float64] = self.step / np.timedelta64(1, "h")
        return hours

    def valid_time(self) -> NDArray[np.datetime64]:
        """`(D, S)`."""
        out: NDArray[np.datetime64] = self.time[:, None] + self.step[None]
        return out

    def select(self, names: list[str] | None, seeds: int | None = None) -> Ensemble:
        """Only some variables (by name or label), and at most the first `seeds` members."""
        index = list(range(len(self.channels)))
        if names is not None:
            index = [i for i, c in enumerate(self.channels) if c.name in names or c.label in names]
            missing = [n for n in names if not any(n in (c.name, c.label) for c in self.channels)]
            if missing:
                have = ", ".join(c.label for c in self.channels)
                raise InputError(f"{self.path}: there is no variable {missing[0]!r}; it holds {have}.")
        arrays = [self.arrays[i] for i in index]
        number = self.number
        if seeds is not None and seeds < len(number):
            arrays = [a.isel(number=slice(0, seeds)) for a in arrays]
            number = number[:seeds]
        fields = {**self.__dict__, "channels": tuple(self.channels[i] for i in index), "arrays": tuple(arrays)}
        return Ensemble(**{**fields, "number": number})
