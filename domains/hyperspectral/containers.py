"""What a hyperspectral file holds, in memory: a `Cube`, in the units and the number type of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError


@dataclass(frozen=True, eq=False)
class Cube:
    """A scene.

    Attributes:
        data: `(rows, columns, bands)` in the file's own number type and units; may be a memory map.
        wavelengths: nm, `(bands,)`, or None.
        fwhm: nm, `(bands,)`, or None.
        good: False where the file flags a band as bad, `(bands,)`; None where it flags none.
        nodata: the value that stands for no data, or None.
        outside: True where the file's mask says that a pixel holds no data, `(rows, columns)`, or None.
        scale, offset: physical value = `scale * stored + offset`.
        kind: name of the file format.
        key: the array's name inside the file.
        axes: the stored array, transposed so, is `data`.
        layout: what the format's writer needs beside that.
        facts: what else the header says, for `info`.
        source: the file read, or None.
        warnings: sentences a user should see.
    """

    data: NDArray[Any]
    wavelengths: NDArray[np.float64] | None = None
    fwhm: NDArray[np.float64] | None = None
    good: NDArray[np.bool_] | None = None
    nodata: float | None = None
    outside: NDArray[np.bool_] | None = None
    scale: float = 1.0
    offset: float = 0.0
    kind: str = "npy"
    key: str = ""
    axes: tuple[int, int, int] = (0, 1, 2)
    layout: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.source) if self.source else "the cube"

    @property
    def shape(self) -> tuple[int, int, int]:
        rows, columns, bands = self.data.shape
        return rows, columns, bands

    def values(self, rows: slice = slice(None), bands: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Stored values of some rows (and bands) as float32, NaN where there is no data; a copy."""
        block = np.asarray(self.data[rows] if bands is None else self.data[rows][..., bands])
        values = block.astype(np.float32)
        values[~np.isfinite(values)] = np.nan
        if self.nodata is not None:
            values[block == self.nodata] = np.nan
        if self.outside is not None:
            values[self.outside[rows]] = np.nan
        return values


def blocks(rows: int, columns: int, bands: int, numbers: int = 1 << 24) -> list[slice]:
    """The rows of a scene in slices of at most `numbers` values each (one row at least)."""
    step = max(1, numbers // max(1, columns * bands))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def checked(cube: Cube) -> Cube:
    """The cube, once it is fit to be worked on.

    Raises:
        InputError: not three axes, no numbers, fewer than two bands, or no value at all.
    """
    shape = cube.data.shape
    if cube.data.ndim != 3 or 0 in shape:
        raise InputError(f"{cube.name}: has the shape {shape}; an array of (rows, columns, bands) is needed.")
    if cube.data.dtype.kind not in "iuf":
        raise InputError(f"{cube.name}: holds numbers of type {cube.data.dtype}; integers or real numbers are needed.")
    if shape[2] < 2:
        raise InputError(f"{cube.name}: has {shape[2]} band; a spectral cube needs at least two.")
    for name in ("wavelengths", "fwhm", "good"):
        values = getattr(cube, name)
        if values is not None and values.shape != (shape[2],):
            raise InputError(f"{cube.name}: has {shape[2]} bands and {values.size} values of {name}; they must agree.")
    if not any(np.isfinite(cube.values(rows)).any() for rows in blocks(*shape)):
        raise InputError(f"{cube.name}: every value is NaN, infinite or no-data.")
    return cube
