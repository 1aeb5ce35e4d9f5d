"""The projector's rays as sparse matrices in torch, for tensors on any device.

The matrix is cut into pieces of rays. Pieces are kept on the device while they fit the memory budget; the others are
made anew in every call, which costs time and no memory. Positions are the same integers as in the compiled kernels, so
both paths hold the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from domains.ct.geometry import Geometry
from domains.ct.rays import Rays

_ENTRIES_PER_PIECE = 1 << 24

Piece = tuple[Tensor, Tensor]


class SparseProjector:
    """`A` and `A^T` for slices `(S, ny, nx)` and sinograms `(S, V, K)` by sparse matrix products."""

    def __init__(self, geometry: Geometry, rays: tuple[Rays, Rays], memory_mb: float) -> None:
        self.geometry = geometry
        self.parts = [part for table in rays for part in _cut(table)]
        self.budget = memory_mb * 2**20
        self._kept: dict[tuple[torch.device, torch.dtype], list[Piece]] = {}

    def forward(self, x: Tensor) -> Tensor:
        columns = x.flatten(1).T.contiguous()
        out = x.new_zeros(self.geometry.n_views * self.geometry.n_bins, x.shape[0])
        for number, (matrix, _) in self._pieces(x):
            out[self._rows(number, x.device)] = matrix @ columns
        return out.T.reshape(-1, *self.geometry.sinogram_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        columns = y.flatten(1).T.contiguous()
        ny, nx = self.geometry.image_shape
        out = y.new_zeros(ny * nx, y.shape[0])
        for number, (_, transposed) in self._pieces(y):
            out += transposed @ columns[self._rows(number, y.device)]
        return out.T.reshape(-1, ny, nx)

    def _rows(self, number: int, device: torch.device) -> Tensor:
        return torch.from_numpy(self.parts[number].ray).to(device, torch.int64)

    def _pieces(self, like: Tensor) -> Iterator[tuple[int, Piece]]:
        kept = self._kept.setdefault((like.device, like.dtype), [])
        used = sum(_bytes(matrix) for piece in kept for matrix in piece)
        for number, part in enumerate(self.parts):
            if number < len(kept):
                yield number, kept[number]
                continue
            piece = self._build(part, like)
            if number == len(kept) and (used := used + sum(map(_bytes, piece))) <= self.budget:
                kept.append(piece)
            yield number, piece

    def _build(self, part: Rays, like: Tensor) -> Piece:
        """The rows of `A` for these rays, and their transpose, both in CSR."""
        integers = (part.a, part.b, part.first, part.last)
        a, b, first, last = (torch.from_numpy(v).to(like.device, torch.int64) for v in integers)
        counts = last - first
        row = torch.repeat_interleave(torch.arange(len(counts), device=like.device), counts)
        step = torch.arange(len(row), device=like.device) - (counts.cumsum(0) - counts)[row] + first[row]
        position = a[row] + b[row] * step
        fraction = ((position >> 8) & 0xFFFFFF).to(like.dtype) * 2.0**-24
        weight = torch.from_numpy(part.weight).to(like.device, like.dtype)[row]
        across = torch.stack([(position >> 32) - 1, position >> 32], 1)  # back to the image without padding
        value = torch.stack([(1 - fraction) * weight, fraction * weight], 1)
        inside = (across >= 0) & (across < part.width)
        nx = self.geometry.image_shape[1]
        column = (step[:, None] * nx + across) if part.along_y else (across * nx + step[:, None])
        indices = torch.stack([row[:, None].expand_as(column)[inside], column[inside]])
        shape = (len(counts), part.steps * part.width)
        return _csr(indices, value[inside], shape), _csr(indices.flip(0), value[inside], shape[::-1])


def _csr(indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Compressed rows with 32-bit indices; no two entries share a place."""
    order = torch.argsort(indices[0] * shape[1] + indices[1])
    starts = torch.zeros(shape[0] + 1, dtype=torch.int64, device=values.device)
    starts[1:] = torch.bincount(indices[0], minlength=shape[0]).cumsum(0)
    return torch.sparse_csr_tensor(
        starts.to(torch.int32), indices[1][order].to(torch.int32), values[order], shape, check_invariants=False
    )


def _bytes(matrix: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in (matrix.crow_indices(), matrix.col_indices(), matrix.values()))


def _cut(rays: Rays) -> Iterator[Rays]:
    """Runs of rays with at most about `_ENTRIES_PER_PIECE` matrix entries."""
    total = np.cumsum(2 * (rays.last - rays.first).astype(np.int64))
    if total.size == 0:
        return
    edges = np.searchsorted(total, np.arange(_ENTRIES_PER_PIECE, total[-1], _ENTRIES_PER_PIECE)) + 1
    for start, stop in pairwise(dict.fromkeys([0, *edges.tolist(), rays.ray.size])):
        names = ("ray", "a", "b", "weight", "first", "last")
        yield replace(rays, **{name: getattr(rays, name)[start:stop] for name in names})
