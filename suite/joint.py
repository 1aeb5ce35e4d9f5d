"""Two or more signals in one measurement: a product of priors, and what its posterior methods need beside the usual ones.

With independent signals x and h and `y = A(x, h) + n` the posterior is `p(x, h | y) ~ p(y | x, h) p(x) p(h)` (Stevens et al. 2024,
"Dehazing Ultrasound using Diffusion Models"; "Removing Structured Noise with Diffusion Models", arXiv 2302.05290). The signals lie
side by side as channels, so that `u = (x, h)` is one signal whose denoiser is `JointPrior`; every method of `suite.posterior`
takes it, with `suite.operators.Block` as the operator of a weighted sum `[A B]`, or any differentiable function of u.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.base import Guided
from suite.solver import Solver
from suite.stepping import History, Knot, Model


class JointPrior(Denoiser):
    """`E[(x, h, ...) | (x_t, h_t, ...)]` of independent signals side by side as channels: each by its own denoiser.

    Args:
        priors: one denoiser for each signal, all of the same process.
        channels: channels of each signal.
        data_std: standard deviation of the data, as the posterior methods use it; for signals of unlike scale the root of the
            mean square.

    Raises:
        InputError: no prior, another number of channel counts, or processes that differ or are anchored.
    """

    def __init__(self, priors: Sequence[Denoiser], channels: Sequence[int], data_std: float = 1.0) -> None:
        if not priors or len(priors) != len(channels):
            raise InputError(f"a product of {len(priors)} prior(s) needs as many channel counts, not {len(channels)}")
        first = priors[0].process
        for prior in priors:
            if (prior.process.name, prior.process.parameters) != (first.name, first.parameters) or first.anchored:
                raise InputError(
                    "the priors of a product need one process for all, and one without an anchor; make their denoisers with it"
                )
        super().__init__(first)
        self.priors, self.channels, self.data_std = list(priors), list(channels), data_std
        self.differentiable = all(prior.differentiable for prior in priors)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if x.shape[1] != sum(self.channels):
            raise InputError(
                f"the signals of this product have {sum(self.channels)} channels, the state has {x.shape[1]}"
            )
        times = t.split(self.channels, 1) if t.ndim == x.ndim and t.shape[1] > 1 else [t] * len(self.priors)
        parts = zip(self.priors, x.split(self.channels, 1), times, strict=True)
        return torch.cat([prior(part, time) for prior, part, time in parts], 1)


class Projection(Guided):
    """The measurement diffused to the state's own noise level, and the state pulled to it after every step.

        u_s <- u_s + strength J^T (y_s - A(u_s)),     y_s = alpha_s y + sigma_s n,     J = dA/du at u_s

    (Stevens et al. 2024, algorithm 1, where strength is lambda = kappa = 0.5 and A the companded sum.) No gradient passes through
    the network. A point estimate: the noise of y_s is not that of A(u_s), so that the pull is too strong at high noise levels.
    For `[1 1]` a strength of 1/2 is the projection onto `x_s + h_s = y_s`.

    Args:
        strength: of the pull; at most 2 / |J|^2 is stable.
    """

    name = "projection"
    estimator = "point"
    steps = 100
    default_solver = "ddim"

    def __init__(self, strength: float = 0.5, **guided: Any) -> None:
        super().__init__(**guided)
        if not strength > 0 or not self.renoise:
            raise InputError(f"projection needs noise in the state and a strength above 0, not {strength}")
        self.strength = strength
        self._noise: Noise | None = None

    def guide(self, prior: Denoiser, measurement: Measurement, noise: Noise) -> Denoiser:
        if prior.process.anchored:
            raise InputError(
                f"projection serves no process that is anchored, such as {prior.process.name}; use vp or flow"
            )
        self._noise = noise
        return prior

    def stepper(self, guide: Denoiser, measurement: Measurement) -> Solver:
        assert self._noise is not None  # `guide` was called before
        return _Pulled(super().stepper(guide, measurement), measurement, self._noise, self.strength)


class _Pulled(Solver):
    """Another solver's step, and the pull of `Projection`."""

    name = "projection"

    def __init__(self, inner: Solver, measurement: Measurement, noise: Noise, strength: float) -> None:
        self.inner, self.measurement, self.noise, self.strength = inner, measurement, noise, strength
        self.cost, self.elementwise = inner.cost, inner.elementwise

    def step(
        self, model: Model, z: Tensor, mean: Tensor, eps: Tensor, t: Knot, s: Knot, history: History
    ) -> tuple[Tensor, History]:
        new, history = self.inner.step(model, z, mean, eps, t, s, history)
        with torch.enable_grad():
            state = new.detach().requires_grad_()
            seen = self.measurement.operator(state)
        level = self.noise.normal(seen.detach()) * s.sigma
        gap = (s.alpha * self.measurement.y + level).to(seen.dtype) - seen.detach()
        (pull,) = torch.autograd.grad(seen, state, gap)
        return new + self.strength * pull, history
