"""How a picture is laid out: its size, its shape, where the bright and the outlying parts lie."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

NUMBERS = 10
"""Numbers that `layout` gives for each picture."""

_BRIGHT = 0.93  # quantile of the body above which a pixel counts as bright
_FLOOR = 1e-3  # network units: less texture than this is none


def layout(pictures: Tensor, objects: Tensor) -> Tensor:
    """`(B, 10)` of pictures `(B, C, ny, nx)` in network units, by their first channel.

    Of the largest piece of the object: log area, log of width over height, centre of the bright part and of what lies beside
    the piece (right and down, in units of its size), log of the gradients across over those down, and three logs of texture
    (by scales of 1, 2 and 4 pixels). A turned picture exchanges right and down, a rescaled one shifts area and texture.

    Args:
        pictures: of two dimensions.
        objects: bool `(B, 1, ny, nx)`, where there is something.
    """
    rows = [_one(x, mask) for x, mask in zip(pictures[:, 0].cpu().numpy(), objects[:, 0].cpu().numpy(), strict=True)]
    return torch.tensor(np.stack(rows), dtype=torch.float32, device=pictures.device)


def _one(image: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    pieces, count = ndimage.label(ndimage.binary_opening(mask))
    if count == 0:
        return np.zeros(NUMBERS)
    body = ndimage.binary_fill_holes(pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:])))
    y, x = np.nonzero(body)
    center, height, width = (y.mean(), x.mean()), y.std() + 0.5, x.std() + 0.5
    size = np.sqrt(height * width)
    bright = body & (image > np.quantile(image[body], _BRIGHT))
    beside = mask & ~ndimage.binary_dilation(body, iterations=3)
    away = _moment(beside, center, size) / len(y)
    down, across = (np.abs(g[body]).mean() + _FLOOR for g in np.gradient(ndimage.gaussian_filter(image, 1.0)))
    return np.array(
        [
            np.log(len(y)),
            np.log(width / height),
            *(_moment(bright, center, size) / max(1, int(bright.sum()))),
            *(np.sign(away) * np.sqrt(np.abs(away))),  # a table is a small part of the picture and far away
            0.5 * np.log(across / down),
            *_texture(image, body),
        ]
    )


def _moment(mask: NDArray[np.bool_], center: tuple[float, float], size: float) -> NDArray[np.float64]:
    """Sum over a mask of the distances right and down from a centre, in units of a size."""
    y, x = np.nonzero(mask)
    return np.array([(x - center[1]).sum(), (y - center[0]).sum()]) / size


def _texture(image: NDArray[np.float32], body: NDArray[np.bool_]) -> list[float]:
    """Log of the usual size of what is finer than 1, 2 and 4 pixels: the first as it is, the others against it."""
    inner = ndimage.binary_erosion(body, iterations=4)
    inner = inner if inner.sum() > 30 else body
    scales = [image, *(ndimage.gaussian_filter(image, s) for s in (1, 2, 4))]
    size = [
        float(np.log(np.median(np.abs(fine - coarse)[inner]) + _FLOOR)) for fine, coarse in itertools.pairwise(scales)
    ]
    return [size[0], size[1] - size[0], size[2] - size[1]]
