"""The projector on the CPU: matrix-free, compiled, parallel over rays (forward) or image rows (adjoint).

Slices go together as the lanes of SIMD vectors; a single slice goes with its mirror images (domains/ct/symmetry.py).

No matrix is stored, because none would pay: torch's sparse product takes 2 to 3 times as long for one slice (128 x 128
to 256 x 256, 30 to 60 views), about as long for many, and is ahead (by a quarter) only for stacks of 64 x 64.

The kernels run without the GIL on a thread pool of torch's size. So there is no second OpenMP runtime beside torch's,
and calls from several Python threads are safe.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.ct.geometry import Geometry
from domains.ct.rays import Rays
from domains.ct.symmetry import LANES, Folded, fold

_WORTH_A_GROUP = 3  # fewer slices are faster one at a time than in a group with empty lanes
_WORTH_A_GROUP_MIRRORED = 7  # the same where each goes with its mirror images
_BAND_BYTES = 1 << 20  # image rows that stay in the second-level cache
_RAYS_PER_TASK = 1 << 14

Array = NDArray[Any]
Run = Callable[[Iterable[Callable[[], None]]], None]


class CompiledProjector:
    """`A` and `A^T` for slices `(S, ny, nx)` and sinograms `(S, V, K)` on the CPU."""

    def __init__(self, geometry: Geometry, rays: tuple[Rays, Rays]) -> None:
        self.geometry = geometry
        self.rays = rays

    @cached_property
    def folded(self) -> Folded | None:
        """The rays by mirror image, for single slices."""
        views, bins = self.geometry.sinogram_shape
        return fold(self.rays, views * bins)

    def forward(self, x: Tensor) -> Tensor:
        values = x.numpy()
        out = np.empty((len(values), *self.geometry.sinogram_shape), values.dtype)

        def project(group: slice, lanes: int, run: Run) -> None:
            part = values[group]
            if lanes == 1 and self.folded is not None:
                sinogram = self._forward_mirrored(part[0], self.folded, run)
            else:
                sinogram = self._forward_stack(part, lanes, run)
            out[group] = sinogram.reshape(-1, *out.shape[1:])

        self._in_groups(len(values), project)
        return torch.from_numpy(out)

    def adjoint(self, y: Tensor) -> Tensor:
        values = y.flatten(1).numpy()
        out = np.empty((len(values), *self.geometry.image_shape), values.dtype)

        def project(group: slice, lanes: int, run: Run) -> None:
            part = values[group]
            if lanes == 1 and self.folded is not None:
                self._adjoint_mirrored(part[0], self.folded, out[group][0], run)
            else:
                self._adjoint_stack(part, lanes, out[group], run)

        self._in_groups(len(values), project)
        return torch.from_numpy(out)

    def _in_groups(self, slices: int, project: Callable[[slice, int, Run], None]) -> None:
        """Groups go side by side, each on one thread, as far as they come out even; the threads share each of the rest."""
        groups = list(self._groups(slices))
        even = len(groups) - len(groups) % torch.get_num_threads()
        run_tasks(partial(project, *group, in_turn) for group in groups[:even])
        for group in groups[even:]:
            project(*group, run_tasks)

    def _groups(self, slices: int) -> Iterator[tuple[slice, int]]:
        """Runs of slices that go together, and the lanes they take."""
        worth = _WORTH_A_GROUP if self.folded is None else _WORTH_A_GROUP_MIRRORED
        start = 0
        while start < slices:
            stop = min(start + (LANES if slices - start >= worth else 1), slices)
            yield slice(start, stop), (LANES if stop - start > 1 else 1)
            start = stop

    def _forward_stack(self, values: Array, lanes: int, run: Run) -> Array:
        from domains.ct import _kernels

        images = [np.empty((rays.steps, rays.width + 2, lanes), values.dtype) for rays in self.rays]
        _kernels.pack(values, *images)
        sinogram = np.zeros((math.prod(self.geometry.sinogram_shape), lanes), values.dtype)
        run(chain(*(_forward_tasks(rays, image, sinogram) for rays, image in zip(self.rays, images, strict=True))))
        return sinogram[:, : len(values)].T

    def _adjoint_stack(self, values: Array, lanes: int, out: Array, run: Run) -> None:
        from domains.ct import _kernels

        sinogram = np.zeros((values.shape[1], lanes), values.dtype)
        sinogram[:, : len(values)] = values.T
        images = [np.zeros((rays.steps, rays.width + 2, lanes), values.dtype) for rays in self.rays]
        run(chain(*(_adjoint_tasks(rays, image, sinogram) for rays, image in zip(self.rays, images, strict=True))))
        _kernels.unpack(*images, out)

    def _forward_mirrored(self, slice_: Array, folded: Folded, run: Run) -> Array:
        from domains.ct import _kernels

        image = np.empty((folded.rays.steps, folded.rays.width + 2, LANES), slice_.dtype)
        _kernels.mirror(slice_, image)
        sinogram = np.zeros(folded.members.shape, slice_.dtype)
        run(_forward_tasks(folded.rays, image, sinogram))
        out = np.zeros(math.prod(self.geometry.sinogram_shape) + 1, slice_.dtype)
        out[folded.members] = sinogram
        return out[:-1]

    def _adjoint_mirrored(self, values: Array, folded: Folded, out: Array, run: Run) -> None:
        from domains.ct import _kernels

        sinogram = np.append(values, values.dtype.type(0))[folded.members]
        image = np.zeros((folded.rays.steps, folded.rays.width + 2, LANES), values.dtype)
        run(_adjoint_tasks(folded.rays, image, sinogram))
        _kernels.mirror_adjoint(image, out)


def _forward_tasks(rays: Rays, image: Array, sinogram: Array) -> Iterator[Callable[[], None]]:
    """Parts of the sum over the steps of each ray, by runs of rays."""
    from domains.ct import _kernels

    call = partial(_kernels.forward, _vectors(image), _vectors(sinogram), *_columns(rays, image.dtype))
    share = min(_RAYS_PER_TASK, -(-rays.ray.size // torch.get_num_threads()))
    for start in range(0, rays.ray.size, max(1, share)):
        stop = min(start + share, rays.ray.size)
        yield partial(call, start, stop, rays.steps, rays.width + 2, _band(image))


def _adjoint_tasks(rays: Rays, image: Array, sinogram: Array) -> Iterator[Callable[[], None]]:
    """Parts of the transpose, by bands of image rows."""
    from domains.ct import _kernels

    call = partial(_kernels.adjoint, _vectors(image), _vectors(sinogram), *_columns(rays, image.dtype))
    band = min(_band(image), -(-rays.steps // torch.get_num_threads()))
    for low in range(0, rays.steps, band):
        yield partial(call, low, min(low + band, rays.steps), rays.width + 2)


def _vectors(array: Array) -> Array:
    """`(..., S)` as a flat array of vectors of S lanes."""
    from domains.ct import _kernels

    return array.reshape(-1).view(_kernels.lane_dtype(array.dtype, array.shape[-1]))


def _columns(rays: Rays, dtype: np.dtype[Any]) -> tuple[Array, ...]:
    return rays.ray, rays.a, rays.b, rays.weight.astype(dtype), rays.first, rays.last


def _band(image: Array) -> int:
    """Image rows that fit the cache."""
    return max(1, _BAND_BYTES // int(image[0].nbytes))


def in_turn(tasks: Iterable[Callable[[], None]]) -> None:
    """Run the tasks one after the other."""
    for task in tasks:
        task()


def run_tasks(tasks: Iterable[Callable[[], None]]) -> None:
    """Run the tasks, as many at a time as torch has threads; their writes do not overlap."""
    threads = torch.get_num_threads()
    if threads == 1:
        in_turn(tasks)
    else:
        for done in [_pool(threads).submit(task) for task in tasks]:
            done.result()


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)  # a pool does not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="projector")
    return _pools[key]
