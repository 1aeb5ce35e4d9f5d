"""A cine in memory: frames of a picture or of echoes, and what is needed to write it back as it was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError

Domain = Literal["grey", "envelope", "rf", "iq"]
Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Which axis of the stored array is what; `frame` is None for a single picture.

    Depth runs along the rows.
    """

    row: int
    column: int
    frame: int | None = None

    def take(self, stored: Array) -> Array:
        """The stored array as `(frame, row, column)`."""
        if self.frame is None:
            return stored.transpose(self.row, self.column)[None]
        return stored.transpose(self.frame, self.row, self.column)

    def give(self, data: Array) -> Array:
        """`(frame, row, column)` as it was stored."""
        if self.frame is None:
            return data[0].transpose(np.argsort((self.row, self.column)))
        return data.transpose(np.argsort((self.frame, self.row, self.column)))


@dataclass(frozen=True, eq=False)
class Cine:
    """Frames of one acquisition.

    Attributes:
        data: `(frame, row, column)`, float32, or complex64 for IQ, in the units of the file; depth along the rows.
        domain: `grey` (log-compressed), `envelope` (linear), `rf` or `iq`.
        black, white: of grey data, the values shown black and white (0 and 255; -60 and 0 for dB).
        dynamic_range_db: of the log compression.
        dynamic_range_known: whether the file or the user told it.
        frame_time_ms: None where the file does not tell.
        spacing_mm: (row, column) pitch, or None.
        angles_deg: of samples along diverging beams, not scan converted: the first and last column's beam, from the vertical.
        apex: of these, distance of the first row from the point where the beams meet, over the length of a beam.
        sector: mask `(row, column)` of the part that shows echoes, where the file tells it; None: to be estimated.
        fixed: mask that broadcasts to the data: pixels never to be changed (text, colour), or None.
        kind: of file: `npz`, `npy`, `mat`, `dicom`, `zea`, `picmus`, `uff`, `metaimage`, `clarius`.
        source: the file.
        key: which array of the file.
        layout, dtype: of the stored array.
        facts: what else the header says, for `info`.
        warnings: sentences a user should see.
    """

    data: Array
    domain: Domain
    kind: str
    source: Path
    layout: Layout
    dtype: np.dtype[Any]
    black: float = 0.0
    white: float = 255.0
    dynamic_range_db: float = 60.0
    dynamic_range_known: bool = False
    frame_time_ms: float | None = None
    spacing_mm: tuple[float, float] | None = None
    angles_deg: tuple[float, float] | None = None
    apex: float = 0.0
    sector: NDArray[np.bool_] | None = None
    fixed: NDArray[np.bool_] | None = None
    key: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        return int(self.data.shape[0])

    def grey(self) -> NDArray[np.float32]:
        """Grey data as 0 (black) to 1 (white)."""
        unit = (self.data - self.black) / (self.white - self.black)
        out: NDArray[np.float32] = np.clip(unit, 0, 1).astype(np.float32)
        return out

    def stored(self, data: Array) -> Array:
        """`data` `(frame, row, column)` in the type and axis order of the file."""
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            data = np.clip(np.rint(data), limits.min, limits.max)
        return np.ascontiguousarray(self.layout.give(data).astype(self.dtype))


def checked(cine: Cine) -> Cine:
    """The cine with single values that are not finite set to the darkest value.

    Raises:
        InputError: empty, every value NaN or the same, more than 1 % not finite, or frames below 8 x 8 pixels.
    """
    name, data = cine.source, cine.data
    if data.size == 0 or min(data.shape[1:]) < 8:
        raise InputError(f"{name}: frames of {data.shape[1:]} samples are too small; at least 8 x 8 are needed.")
    bad = ~np.isfinite(data)
    count = int(bad.sum())
    if count == data.size:
        raise InputError(f"{name}: every value is NaN or infinite.")
    if count > 0.01 * data.size:
        raise InputError(
            f"{name}: {100 * count / data.size:.1f} % of the values are NaN or infinite; finite ones are needed."
        )
    if count:
        data = np.where(bad, cine.black if cine.domain == "grey" else 0, data).astype(data.dtype)
        said = f"{name.name}: {count} value(s) were NaN or infinite and count as black."
        cine = replace(cine, data=data, warnings=(*cine.warnings, said))
    if float(np.ptp(np.abs(data))) == 0:
        raise InputError(f"{name}: every value is the same, so the cine shows nothing.")
    return cine


def guess_domain(array: Array, name: str) -> tuple[Domain, float, float]:
    """`(domain, black, white)` of a bare array: complex is IQ, unsigned integers grey, signed values about zero RF.

    Floats of one sign: at most 1, grey of 0 to 1; at most 255, grey of 0 to 255; at most 0, dB; larger, an envelope.

    Raises:
        InputError: not numbers.
    """
    if array.dtype.kind == "c":
        return "iq", 0.0, 1.0
    if array.dtype.kind == "u":
        return "grey", 0.0, float(np.iinfo(array.dtype).max if array.dtype.itemsize == 1 else max(array.max(), 1))
    if array.dtype.kind not in "if":
        raise InputError(f"{name}: holds {array.dtype} and no numbers.")
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    if finite.size == 0:
        raise InputError(f"{name}: every value is NaN or infinite.")
    low, high = float(finite.min()), float(finite.max())
    if low < 0 < high:
        return "rf", 0.0, 1.0
    if high <= 0 and low < 0:
        return "grey", -60.0, 0.0
    if high <= 1 and array.dtype.kind == "f":
        return "grey", 0.0, 1.0
    return ("grey", 0.0, 255.0) if high <= 255 else ("envelope", 0.0, 1.0)
