"""The projector on the CPU: matrix-free, compiled, parallel over rays (forward) or image rows (adjoint).

No matrix is stored, because none would pay: torch's sparse product takes 2 to 3 times as long for one slice (128 x 128
to 256 x 256, 30 to 60 views), about as long for many, and is ahead (by a quarter) only for stacks of 64 x 64.

The kernels run without the GIL on a thread pool of torch's size. So there is no second OpenMP runtime beside torch's,
and calls from several Python threads are safe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.ct.geometry import Geometry
from domains.ct.rays import Rays

LANES = 8  # slices that share one pass over the rays: a SIMD register of 256 bits
_WORTH_A_GROUP = 3  # fewer slices are faster one at a time than in a group with empty lanes
_BAND_BYTES = 1 << 20  # image rows that stay in the second-level cache
_RAYS_PER_TASK = 1 << 14

Array = NDArray[Any]


class CompiledProjector:
    """`A` and `A^T` for slices `(S, ny, nx)` and sinograms `(S, V, K)` on the CPU."""

    def __init__(self, geometry: Geometry, rays: tuple[Rays, Rays]) -> None:
        self.geometry = geometry
        self.rays = rays

    def forward(self, x: Tensor) -> Tensor:
        from domains.ct import _kernels

        views, bins = self.geometry.sinogram_shape
        values = x.numpy()
        out = np.empty((len(values), views * bins), values.dtype)
        for group, lanes in _groups(len(values)):
            rows = values[group].transpose(1, 2, 0)
            used = rows.shape[2]
            sinogram = np.zeros((views * bins, lanes), values.dtype)
            tasks = []
            for rays in self.rays:
                image = np.zeros((rays.steps, rays.width + 2, lanes), values.dtype)
                image[:, 1:-1, :used] = rows if rays.along_y else rows.swapaxes(0, 1)
                rows = image[:, 1:-1, :used]  # the second table's transpose is faster from here
                call = partial(_kernels.forward, _vectors(image), _vectors(sinogram), *_columns(rays, values.dtype))
                for start in range(0, rays.ray.size, _RAYS_PER_TASK):
                    stop = min(start + _RAYS_PER_TASK, rays.ray.size)
                    tasks.append(partial(call, start, stop, rays.steps, rays.width + 2, _band(image)))
            _run(tasks)
            out[group] = sinogram[:, :used].T
        return torch.from_numpy(out.reshape(len(values), views, bins))

    def adjoint(self, y: Tensor) -> Tensor:
        from domains.ct import _kernels

        values = y.flatten(1).numpy()
        out = np.empty((len(values), *self.geometry.image_shape), values.dtype)
        for group, lanes in _groups(len(values)):
            used = len(values[group])
            sinogram = np.zeros((values.shape[1], lanes), values.dtype)
            sinogram[:, :used] = values[group].T
            tasks, images = [], []
            for rays in self.rays:
                image = np.zeros((rays.steps, rays.width + 2, lanes), values.dtype)
                images.append(image[:, 1:-1, :used])
                call = partial(_kernels.adjoint, _vectors(image), _vectors(sinogram), *_columns(rays, values.dtype))
                band = min(_band(image), -(-rays.steps // torch.get_num_threads()))
                for low in range(0, rays.steps, band):
                    tasks.append(partial(call, low, min(low + band, rays.steps), rays.width + 2))
            _run(tasks)
            images[0] += images[1].swapaxes(0, 1)
            out[group] = images[0].transpose(2, 0, 1)
        return torch.from_numpy(out)


def _groups(slices: int) -> Iterator[tuple[slice, int]]:
    """Runs of slices that go together, and the lanes they take."""
    start = 0
    while start < slices:
        stop = min(start + (LANES if slices - start >= _WORTH_A_GROUP else 1), slices)
        yield slice(start, stop), (LANES if stop - start > 1 else 1)
        start = stop


def _vectors(array: Array) -> Array:
    """`(..., S)` as a flat array of vectors of S lanes."""
    from domains.ct import _kernels

    return array.reshape(-1).view(_kernels.lane_dtype(array.dtype, array.shape[-1]))


def _columns(rays: Rays, dtype: np.dtype[Any]) -> tuple[Array, ...]:
    return rays.ray, rays.a, rays.b, rays.weight.astype(dtype), rays.first, rays.last


def _band(image: Array) -> int:
    """Image rows that fit the cache."""
    return max(1, _BAND_BYTES // int(image[0].nbytes))


def _run(tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks, as many at a time as torch has threads; their writes do not overlap."""
    threads = torch.get_num_threads()
    if threads == 1:
        for task in tasks:
            task()
    else:
        for done in [_pool(threads).submit(task) for task in tasks]:
            done.result()


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)  # a pool does not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="projector")
    return _pools[key]
