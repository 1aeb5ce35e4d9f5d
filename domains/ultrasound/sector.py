"""Which pixels of a picture show echoes: the sector, estimated where the file does not tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from domains.ultrasound.containers import Cine

DARK = 10 / 255


def scan_converted(cine: Cine) -> bool:
    """Whether the rows and columns are those of a picture, and not samples and lines."""
    return cine.domain == "grey" and cine.kind != "clarius" and cine.angles_deg is None


def fan_shaped(mask: NDArray[np.bool_]) -> bool:
    """Whether the sector is narrow on top, as that of a phased or curved array."""
    widths = mask.sum(1)[mask.any(1)]
    return bool(widths[: max(1, len(widths) // 20)].max() < 0.6 * widths.max())


def sector_of(cine: Cine) -> NDArray[np.bool_]:
    """Mask `(row, column)`: the region the file tells, cut down to what the pixels show; all of it for echo data.

    Echo data (envelope, RF, IQ, Clarius raw) are not scan converted: every sample counts. In grey pictures the sector is the
    largest connected piece that is bright in some frame, and in a cine changes over time, without gaps along the rows.
    """
    if not scan_converted(cine):
        return np.ones(cine.data.shape[1:], bool)
    grey = cine.grey()
    if cine.fixed is not None:
        grey = np.where(cine.fixed, 0, grey)
    mask = estimated(grey)
    if cine.sector is None:
        return mask
    inside = mask & cine.sector
    return inside if inside.any() else cine.sector


def estimated(grey: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The sector of a cine of grey values 0..1 `(frame, row, column)`."""
    bright = grey.max(0) > DARK
    if len(grey) > 1:
        moving = np.ptp(grey, axis=0) > 6 / 255
        bright &= ndimage.binary_dilation(moving, iterations=2)
    opened = ndimage.binary_opening(bright, np.ones((3, 3)))
    labels, count = ndimage.label(ndimage.binary_closing(opened, np.ones((5, 5))))
    if count == 0:
        return np.ones(grey.shape[1:], bool)
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1))
    largest = labels == 1 + int(np.argmax(sizes))
    return row_filled(largest)


def row_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without gaps along its rows."""
    left = np.maximum.accumulate(mask, 1)
    right = np.maximum.accumulate(mask[:, ::-1], 1)[:, ::-1]
    return left & right
