"""Volumes from a prior of slices: DiffusionMBIR and DDS-3D as one method, for any operator, along any axis.

A volume is a stack, the batch `(S, C, *spatial)` being its slices (axis 0), as operators that act slice by slice take it;
or a batch of volumes `(B, C, *spatial)` with its slices along one of the spatial axes, for operators that see the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.measurement import Measurement
from suite.mirrored import Mirrored
from suite.noise import Noise
from suite.operators import LinearOperator
from suite.posterior.base import GuidedDenoiser
from suite.posterior.data_step import DataStep
from suite.posterior.dds import DDS
from suite.process import Process
from suite.solver import Callback

_AT_ONCE = 2**20  # numbers worked on together where a whole volume would be held once more


class MBIR(DDS):
    """A prior of slices, the data, and total variation across the slices (Chung et al. 2023, DiffusionMBIR; Chung, Lee
    and Ye 2024, DDS, section 4.3).

        x^  = argmin |W (A x - y)|^2 + |x - D|^2 / v + 2 lambda |d x|_1,      v = strength r_t^2

    is approached by one ADMM iteration in each reverse step, whose split and dual variables persist over the whole process;
    d are the differences between neighbouring slices, none beyond the ends. See `CoupledStep`, and `DDS` for the rest.

    The penalty needs no truth. An error of D of standard deviation r_t and differences of the object with a Laplace law of
    scale b ask for `lambda = coupling r_t^2 / (b v) = coupling / (b strength)`, with `coupling = 1` where both are white.
    b is taken from D itself: `sum d^2 / (2 sum |d|)`, which empty regions do not change.

    A point estimate: it has no spread of its own.

    Args:
        coupling: factor on the penalty; 0 leaves the slices apart, which is DDS slice by slice.
        axis: dimension of the state along which the slices lie: 0 (the batch is one stack), or 2, 3, ...
        orientations: dimensions, in the same count, along which the prior sees slices; the means D of several are averaged
            (Lee et al. 2023, TPDM; Song et al. 2024, DiffusionBlend), each costs an evaluation per step, and the voxels should
            be about cubic then. Default: `axis` alone.
        priors: priors for the orientations after the first (default: the one prior for all).
        symmetries: show the prior mirror images of the slices, other ones in each step; see `Mirrored`.
        dds: see `DDS`.
    """

    name = "mbir"

    def __init__(
        self,
        coupling: float = 1.0,
        *,
        axis: int = 0,
        orientations: Sequence[int] | None = None,
        priors: Sequence[Denoiser] = (),
        symmetries: bool = False,
        **dds: Any,
    ) -> None:
        super().__init__(**dds)
        if not coupling >= 0:
            raise InputError(f"the coupling of mbir must be zero or more, not {coupling}")
        self.coupling, self.axis = coupling, axis
        self.orientations = tuple(orientations or (axis,))
        self.priors, self.symmetries = tuple(priors), symmetries
        if self.priors and len(self.priors) != len(self.orientations) - 1:
            raise InputError(
                f"mbir has {len(self.orientations)} orientations and {len(self.priors)} priors beside the first; give "
                "one for each further orientation, or none"
            )

    def run(
        self,
        prior: Denoiser,
        measurement: Measurement,
        like: Tensor,
        *,
        noise: Noise,
        steps: int | None = None,
        y: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """See `PosteriorMethod.run`; `noise` has one generator for each slice, in their order."""
        views = len(self.orientations)
        priors: tuple[Denoiser, ...] = (prior, *(self.priors or (prior,) * (views - 1)))
        if self.symmetries:
            priors = tuple(Mirrored(one, noise.generators[0]) for one in priors)
        prior = SlicePrior(priors, self.orientations, self.axis)
        if steps is not None:
            if steps < views:
                raise InputError(f"mbir with {views} orientations needs at least {views} evaluations, not {steps}")
            steps //= views
        noise = SliceNoise(noise.generators, self.axis)
        return super().run(prior, measurement, like, noise=noise, steps=steps, y=y, callback=callback)

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        return _MBIR(prior, measurement, self)


class _MBIR(GuidedDenoiser):
    def __init__(self, prior: Denoiser, measurement: Measurement, method: MBIR) -> None:
        super().__init__(prior, measurement, method.data_std)
        self.step = CoupledStep(measurement, method.axis, method.iterations, method.tolerance)
        self.method = method

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.predict(x, t, y)[0]

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, eps = self.prior.predict(x, t, y)
        method, r2 = self.method, self.variance(t)
        variance = method.weight(r2)
        penalty = 0.0
        if method.coupling:
            penalty = method.coupling * float((r2 / variance).mean()) / laplace_scale(differences(mean, method.axis))
        return self.step(mean, variance, penalty), eps


class CoupledStep:
    """One iteration towards `argmin |W (A x - y)|^2 + |x - v|^2 / r + 2 penalty |d x|_1`, r the variance (of each slice).

        x <- argmin |W (A x - y)|^2 + |x - v|^2 / r + 2 <x, d^T q>
        w <- argmin |w - (x + r d^T q)|^2 / r + 2 penalty |d w|_1,      q <- the dual variable of w's problem

    ADMM on the split `x = w` with the augmented term left out of the first line (Tseng 1991, alternating minimisation).
    That line then decouples: every slice has its own conjugate gradients, and any measurement serves that serves slices one
    by one. Convergence for any penalty: the second line ascends the dual problem in the metric `r d d^T`, which bounds its
    curvature. It sees neither operator nor network and is solved by a few accelerated steps from the q before; q is all that
    has to be kept of split and dual variables (`w = x + r d^T (q_old - q)`), and lives as long as the object.

    Args:
        measurement: of the slices (axis 0) or of volumes.
        axis: dimension across which the differences are taken.
        iterations, tolerance: of the conjugate gradients.
    """

    def __init__(self, measurement: Measurement, axis: int, iterations: int, tolerance: float) -> None:
        self.data = DataStep(measurement, iterations, tolerance)
        self.axis = axis
        self.dual: Tensor | None = None

    def __call__(self, v: Tensor, variance: Tensor, penalty: float) -> Tensor:
        if penalty == 0:
            return self.data(v, variance)
        r = variance.to(v.dtype)
        if self.dual is None:
            self.dual = total_variation_dual(v, r, penalty, torch.zeros_like(differences(v, self.axis)), self.axis)
        dual = self.dual.clamp_(-penalty, penalty)
        shift = r * differences_adjoint(dual, self.axis)
        x = self.data(v - shift, variance)
        self.dual = total_variation_dual(x + shift, r, penalty, dual, self.axis)
        return x


def total_variation_dual(
    v: Tensor, variance: Tensor, penalty: float, start: Tensor, axis: int, iterations: int = 10
) -> Tensor:
    """q of `min_w |w - v|^2 / variance + 2 penalty |d w|_1`, whose solution is `w = v - variance d^T q`, |q| <= penalty.

    Projected gradients with momentum (Beck and Teboulle 2009, FGP) from `start`; `|d|^2 < 4`. Every line along the axis is a
    problem of its own, so a part of the lines is worked on at a time: no further volume is held.
    """
    step = 1 / (4 * variance.amax())
    across = max((dim for dim in range(v.ndim) if dim != axis), key=lambda dim: v.shape[dim])
    lines = max(1, _AT_ONCE * v.shape[across] // v.numel())
    parts = (x.split(lines, across) for x in (v, variance.expand(v.shape), start))
    out = torch.empty_like(start)
    for target, (piece, r, q) in zip(out.split(lines, across), zip(*parts, strict=True), strict=True):
        ahead, t = q, 1.0
        for _ in range(iterations):
            slope = differences(piece - r * differences_adjoint(ahead, axis), axis)
            new = (ahead + step * slope).clamp_(-penalty, penalty)
            t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
            ahead = torch.lerp(q, new, 1 + (before - 1) / t)
            q = new
        target.copy_(q)
    return out


def differences(x: Tensor, axis: int) -> Tensor:
    """`x[k + 1] - x[k]` along an axis; one entry less than x, so that nothing is said beyond the ends (Neumann)."""
    return x.diff(dim=axis)


def differences_adjoint(q: Tensor, axis: int) -> Tensor:
    """The transpose of `differences`."""
    n = q.shape[axis]
    out = q.new_zeros((*q.shape[:axis], n + 1, *q.shape[axis + 1 :]))
    out.narrow(axis, 1, n).add_(q)
    out.narrow(axis, 0, n).sub_(q)
    return out


def laplace_scale(d: Tensor) -> float:
    """Scale b of differences with a Laplace law, `sum d^2 / (2 sum |d|)`: exact zeros (air, padding) leave it alone."""
    size = square = 0.0
    for part in d.flatten().split(_AT_ONCE):
        size += float(part.abs().sum(dtype=torch.float64))
        square += float(part.square().sum(dtype=torch.float64))
    return square / (2 * size) if size > 0 else 1.0


# --- slices and volumes --------------------------------------------------------------------------------------------------


def slices_of(x: Tensor, dim: int, axis: int) -> Tensor:
    """The slices along `dim` of a state whose stack lies along `axis`, as a batch `(slices, C, *spatial)`."""
    if axis == 0:  # the batch is the stack: bring it among the spatial axes of one volume
        x = x.transpose(0, 1)[None]
        dim = 2 if dim == 0 else dim + 1
    return x.movedim(dim, 1).flatten(0, 1)


def volume_of(slices: Tensor, dim: int, axis: int, like: Tensor) -> Tensor:
    """The inverse of `slices_of`; `like` has the shape of the state."""
    if axis == 0:
        dim = 2 if dim == 0 else dim + 1
        volumes = slices.unflatten(0, (1, -1)).movedim(1, dim)
        return volumes[0].transpose(0, 1)
    return slices.unflatten(0, (like.shape[0], -1)).movedim(1, dim)


class SlicePrior(Denoiser):
    """The mean over several orientations of what a prior of slices says of a volume.

    Args:
        priors: one for each orientation, all of one process.
        orientations: dimensions of the state along which the slices are taken.
        axis: where the stack lies, see `MBIR`.

    Raises:
        InputError: priors of different processes; a call with several times.
    """

    def __init__(self, priors: Sequence[Denoiser], orientations: Sequence[int], axis: int = 0) -> None:
        super().__init__(priors[0].process)
        if not all(_agree(prior.process, self.process) for prior in priors):
            raise InputError("the priors of the orientations of a volume must share one process")
        self.priors, self.orientations, self.axis = tuple(priors), tuple(orientations), axis
        self.differentiable = all(prior.differentiable for prior in priors)
        if hasattr(priors[0], "data_std"):
            self.data_std = priors[0].data_std

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        dims = tuple(dim % x.ndim for dim in self.orientations)
        if 1 in dims or (0 in dims and self.axis != 0):
            raise InputError(f"orientations {self.orientations}: a state {tuple(x.shape)} has no such slices")
        if t.numel() != 1 and not (dims == (0,) and t.numel() == len(x)):
            raise InputError("a volume has one time, or (seen in one orientation, as a stack) one for each slice")
        mean: Tensor | None = None
        for prior, dim in zip(self.priors, dims, strict=True):
            slices = slices_of(x, dim, self.axis)
            given = None if y is None else slices_of(y, dim, self.axis)
            now = t.reshape(-1, *(1,) * (slices.ndim - 1))
            said = volume_of(prior(slices, now, given), dim, self.axis, x)
            mean = said if mean is None else mean + said
        assert mean is not None
        return mean / len(dims) if len(dims) > 1 else mean


def _agree(one: Process, other: Process) -> bool:
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    pairs = ((one.alpha, other.alpha), (one.beta, other.beta), (one.sigma, other.sigma))
    return one is other or all(torch.allclose(f(times), g(times)) for f, g in pairs)


class SliceNoise(Noise):
    """One generator for each slice along `axis`: slice k receives the same numbers whichever way the volume lies."""

    def __init__(self, generators: Sequence[torch.Generator], axis: int) -> None:
        super().__init__(generators)
        self.axis = axis

    def normal(self, like: Tensor) -> Tensor:
        if self.axis == 0 or len(self.generators) in (1, like.shape[0]):
            return super().normal(like)
        return volume_of(super().normal(slices_of(like, self.axis, self.axis)), self.axis, self.axis, like)


class StackMeasurement(Measurement):
    """Measurements of the parts of a stack, worked on one after the other: the memory is that of one part.

    Args:
        parts: consecutive parts, each with one measurement for each of its slices.
    """

    def __init__(self, parts: Sequence[Measurement]) -> None:
        if not parts or len({part.noise_level for part in parts}) != 1:
            raise InputError("the parts of a stack must be all noisy or all noise-free, and there must be one")
        self.parts = tuple(parts)
        self.operator, self.linear = parts[0].operator, all(part.linear for part in parts)
        self.noise_level, self.preconditioner = parts[0].noise_level, None
        self.sizes = [len(part.y) for part in parts]

    @property
    def linear_operator(self) -> LinearOperator:
        raise InputError("this method needs the operator of the whole stack at once; use dds, diffpir, ddnm or mbir")

    def residual(self, x: Tensor) -> Tensor:
        return torch.cat([part.residual(piece) for part, piece in self._with(x)])

    def misfit_chi2(self, x: Tensor, by: int | None = None) -> Tensor:
        return torch.cat([part.misfit_chi2(piece, by) for part, piece in self._with(x)])

    def negative_log_likelihood(self, x: Tensor) -> Tensor:
        return torch.cat([part.negative_log_likelihood(piece) for part, piece in self._with(x)])

    def proximal(self, v: Tensor, precision: float | Tensor, *, start: Tensor | None = None, **solver: Any) -> Tensor:
        """See `Measurement.proximal`; the precision is one for all slices, or one for each of the first dimension."""
        p = torch.as_tensor(precision)
        pieces = [p] * len(self.parts) if p.shape[:1] in ((), (1,)) else list(p.split(self.sizes))
        starts = [None] * len(self.parts) if start is None else list(start.split(self.sizes))
        out = torch.empty_like(v)
        for (part, piece), q, first, target in zip(self._with(v), pieces, starts, out.split(self.sizes), strict=True):
            target.copy_(part.proximal(piece, q, start=first, **solver))
        return out

    def _with(self, x: Tensor) -> list[tuple[Measurement, Tensor]]:
        if len(x) != sum(self.sizes):
            raise InputError(f"the stack has {sum(self.sizes)} slices, not {len(x)}")
        return list(zip(self.parts, x.split(self.sizes), strict=True))
