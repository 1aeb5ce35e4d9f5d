"""MBIR: the coupled step against a dense solution, slices left apart, any axis, parts of a stack, orientations, ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.gaussian import Gaussian
from suite.linalg import adjoint_error
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import LinearOperator, Matrix
from suite.posterior import DDS
from suite.process import process
from suite.volume import (
    MBIR,
    CoupledStep,
    SliceNoise,
    SlicePrior,
    StackMeasurement,
    differences,
    differences_adjoint,
    laplace_scale,
    slices_of,
    total_variation_dual,
    volume_of,
)

SIDE, SLICES = 4, 6
PIXELS = SIDE * SIDE
EXACT = {"iterations": 60, "tolerance": 1e-12}


class Rays(LinearOperator):
    """A dense matrix on images `(B, 1, 4, 4)`; remembers the largest batch it saw."""

    def __init__(self, rows: int = 9) -> None:
        matrix = torch.randn(rows, PIXELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.matrix, self.largest = Matrix(matrix / 4), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, len(x))
        return self.matrix.forward(x.flatten(1))

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.matrix.adjoint(y).reshape(len(y), 1, SIDE, SIDE)


def prior() -> Denoiser:
    mean = torch.zeros(1, SIDE, SIDE, dtype=torch.float64)
    return Gaussian(mean, torch.full((1, SIDE, SIDE), 0.25, dtype=torch.float64)).denoiser(process("ve"))


def problem(slices: int = SLICES, noise: float = 0.1) -> tuple[torch.Tensor, Measurement]:
    """A stack whose slices drift, and its noisy measurement."""
    g = torch.Generator().manual_seed(0)
    first = torch.randn(1, 1, SIDE, SIDE, generator=g, dtype=torch.float64)
    drift = torch.randn(slices, 1, SIDE, SIDE, generator=g, dtype=torch.float64).cumsum(0) / 8
    truth = (first + drift) / 2
    op = Rays()
    y = op(truth)
    return truth, Measurement(op, y + noise * torch.randn(y.shape, generator=g, dtype=torch.float64), noise)


def names(slices: int = SLICES) -> list[str]:
    return [f"slice {k}" for k in range(slices)]


def run(method: DDS, measurement: Measurement, slices: int = SLICES) -> torch.Tensor:
    like = torch.empty(slices, 1, SIDE, SIDE, dtype=torch.float64)
    return method.run(prior(), measurement, like, noise=Noise.of(0, names(slices)), steps=8)


# --- the coupled step ----------------------------------------------------------------------------------------------------


def dense_solution(measurement: Measurement, v: torch.Tensor, variance: float, penalty: float) -> np.ndarray:
    """The minimiser by its dual, a bounded least-squares problem in q: `x = H^-1 (b - d^T q)`, |q| <= penalty."""
    a = measurement.operator.matrix.forward(torch.eye(PIXELS, dtype=torch.float64)).T.numpy()  # type: ignore[union-attr]
    weight = 1 / 0.1**2
    h = np.kron(np.eye(len(v)), weight * a.T @ a + np.eye(PIXELS) / variance)
    b = (weight * measurement.y.numpy() @ a + v.flatten(1).numpy() / variance).ravel()
    d = np.kron(np.diff(np.eye(len(v)), axis=0), np.eye(PIXELS))
    root = np.linalg.inv(np.linalg.cholesky(h))
    q = lsq_linear(root @ d.T, root @ b, bounds=(-penalty, penalty), method="bvls", tol=1e-14).x
    return np.linalg.solve(h, b - d.T @ q)


@pytest.mark.parametrize("penalty", [0.05, 0.5, 2.0])
def test_repeated_steps_reach_the_dense_minimum(penalty: float) -> None:
    _, measurement = problem()
    v = torch.randn(SLICES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    variance = torch.tensor(0.3, dtype=torch.float64)
    step = CoupledStep(measurement, 0, **EXACT)
    for _ in range(400):
        x = step(v, variance, penalty)
    np.testing.assert_allclose(x.numpy().ravel(), dense_solution(measurement, v, 0.3, penalty), atol=1e-4)


def test_the_dual_lives_on_and_stays_within_the_penalty() -> None:
    _, measurement = problem()
    v = torch.randn(SLICES, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = CoupledStep(measurement, 0, **EXACT)
    one = torch.ones((), dtype=torch.float64)
    first, second = step(v, one, 0.3), step(v, one, 0.3)
    assert not torch.equal(first, second)  # the same call gives more: the state carries over
    assert step.dual is not None and float(step.dual.abs().max()) <= 0.3
    step(v, one, 0.01)
    assert float(step.dual.abs().max()) <= 0.01


@given(st.integers(2, 7), st.integers(0, 2), st.integers(0, 100))
def test_the_differences_and_their_transpose(n: int, axis: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    shape = [3, 3, 3]
    shape[axis] = n
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    q = torch.randn(differences(x, axis).shape, generator=g, dtype=torch.float64)
    assert float((differences(x, axis) * q).sum() - (x * differences_adjoint(q, axis)).sum()) == pytest.approx(
        0, abs=1e-12
    )
    ramp = torch.arange(n, dtype=torch.float64)
    assert torch.equal(differences(ramp, 0), torch.ones(n - 1, dtype=torch.float64))  # no wrap from last to first


def test_the_ends_are_not_tied_to_each_other() -> None:
    """A step in the middle of a stack: with a periodic difference its first and last slice would be drawn together."""
    identity = Matrix(torch.eye(PIXELS, dtype=torch.float64))

    class Whole(Rays):
        def __init__(self) -> None:
            self.matrix, self.largest = identity, 0

    v = torch.cat([torch.zeros(4, 1, SIDE, SIDE), torch.ones(4, 1, SIDE, SIDE)]).double()
    measurement = Measurement(Whole(), v.flatten(1), 1.0)
    step = CoupledStep(measurement, 0, **EXACT)
    for _ in range(40):
        x = step(v, torch.ones((), dtype=torch.float64), 0.8)
    # each half is one level, drawn to the other by penalty / (slices * total weight)
    torch.testing.assert_close(x[:4], torch.full_like(x[:4], 0.8 / (4 * 2)), atol=1e-6, rtol=0)
    torch.testing.assert_close(x[4:], torch.full_like(x[4:], 1 - 0.8 / (4 * 2)), atol=1e-6, rtol=0)


def test_the_laplace_scale_is_that_of_the_law_whatever_is_empty() -> None:
    d = torch.distributions.Laplace(0.0, 0.3).sample((200_000,))
    assert laplace_scale(d) == pytest.approx(0.3, rel=0.03)
    assert laplace_scale(torch.cat([d, torch.zeros(10**6)])) == pytest.approx(laplace_scale(d), rel=1e-6)
    assert laplace_scale(torch.zeros(5)) > 0


# --- the method ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"renoise": False, "momentum": 0.5}, {"eta": 0.5}])
def test_without_coupling_it_is_dds_slice_by_slice(options: dict[str, object]) -> None:
    _, measurement = problem()
    together = run(MBIR(0.0, **options), measurement)  # type: ignore[arg-type]
    for k in range(SLICES):
        alone = Measurement(measurement.operator, measurement.y[k : k + 1], 0.1)
        like = torch.empty(1, 1, SIDE, SIDE, dtype=torch.float64)
        single = DDS(**options).run(prior(), alone, like, noise=Noise.of(0, names()[k : k + 1]), steps=8)  # type: ignore[arg-type]
        torch.testing.assert_close(together[k], single[0], atol=1e-9, rtol=0)


def test_coupling_lowers_the_jitter_and_the_error() -> None:
    truth, measurement = problem(24, noise=0.1)
    apart, coupled = (run(MBIR(c, renoise=False), measurement, 24) for c in (0.0, 1.0))

    def rms(x: torch.Tensor) -> float:
        return float(x.square().mean().sqrt())

    assert rms(differences(coupled - truth, 0)) < 0.8 * rms(differences(apart - truth, 0))
    assert rms(coupled - truth) < rms(apart - truth)


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("renoise", [True, False])
def test_a_volume_with_its_slices_along_any_axis_equals_the_stack(axis: int, renoise: bool) -> None:
    _, measurement = problem()
    method = {"renoise": renoise, **EXACT}
    stack = run(MBIR(1.0, **method), measurement)
    volume = Measurement(Moved(measurement.operator, axis), measurement.y[None], 0.1)  # type: ignore[arg-type]
    shape = volume_of(stack, axis, axis, torch.empty(1)).shape
    out = MBIR(1.0, axis=axis, **method).run(
        prior(), volume, torch.empty(shape, dtype=torch.float64), noise=Noise.of(0, names()), steps=8
    )
    torch.testing.assert_close(slices_of(out, axis, axis), stack, atol=1e-6, rtol=0)


class Moved(LinearOperator):
    """An operator of slices on volumes `(1, 1, ...)` whose slices lie along `axis`; its range is `(1, slices, rays)`."""

    def __init__(self, op: LinearOperator, axis: int) -> None:
        self.op, self.axis = op, axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op.forward(slices_of(x, self.axis, self.axis))[None]

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return volume_of(self.op.adjoint(y[0]), self.axis, self.axis, torch.empty(1))


@given(st.sampled_from([(0, 0), (0, 2), (0, 3), (2, 2), (3, 3), (4, 4), (2, 4)]), st.integers(0, 5))
def test_slices_and_volumes_are_inverse(case: tuple[int, int], seed: int) -> None:
    axis, dim = case
    shape = (5, 2, 3, 4) if axis == 0 else (2, 1, 3, 4, 5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    slices = slices_of(x, dim, axis)
    assert torch.equal(volume_of(slices, dim, axis, x), x)
    k = 1
    expected = x[k] if dim == 0 else x.transpose(0, 1).select(dim, k) if axis == 0 else x[0].select(dim - 1, k)
    assert torch.equal(slices[k], expected)


def test_noise_belongs_to_the_slice() -> None:
    noise = SliceNoise(Noise.of(3, names()).generators, 3)
    drawn = noise.normal(torch.empty(1, 1, SIDE, SLICES, SIDE))
    expected = Noise.of(3, names()).normal(torch.empty(SLICES, 1, SIDE, SIDE))
    assert torch.equal(slices_of(drawn, 3, 3), expected)


# --- parts of a stack ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_a_stack_give_the_same_result_in_less_memory(size: int) -> None:
    _, whole = problem()
    op = Rays()
    parts = [Measurement(op, y, 0.1) for y in whole.y.split(size)]
    stack = StackMeasurement(parts)
    expected = run(MBIR(1.0), whole)
    op.largest = 0
    torch.testing.assert_close(run(MBIR(1.0), stack), expected, atol=1e-10, rtol=0)
    assert op.largest == size
    torch.testing.assert_close(stack.misfit_chi2(expected), whole.misfit_chi2(expected))
    torch.testing.assert_close(stack.residual(expected), whole.residual(expected))
    torch.testing.assert_close(stack.negative_log_likelihood(expected), whole.negative_log_likelihood(expected))
    each = torch.linspace(0.5, 2, SLICES, dtype=torch.float64)
    torch.testing.assert_close(stack.proximal(expected, each), whole.proximal(expected, each), atol=1e-8, rtol=0)


def test_parts_refuse_what_needs_the_whole() -> None:
    _, whole = problem()
    stack = StackMeasurement([whole])
    with pytest.raises(InputError, match="mbir"):
        stack.gradient(torch.zeros(SLICES, 1, SIDE, SIDE, dtype=torch.float64))
    with pytest.raises(InputError, match="6 slices, not 5"):
        stack.residual(torch.zeros(5, 1, SIDE, SIDE, dtype=torch.float64))
    with pytest.raises(InputError, match="noise-free"):
        StackMeasurement([whole, Measurement(whole.operator, whole.y, 0.0)])


# --- orientations --------------------------------------------------------------------------------------------------------


class Shrink(Denoiser):
    """`factor x`, whatever the noise; counts its calls."""

    def __init__(self, factor: float) -> None:
        super().__init__(process("ve"))
        self.factor, self.calls, self.shapes = factor, 0, []  # type: ignore[var-annotated]

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        self.shapes.append(tuple(x.shape))
        return self.factor * x


def test_the_means_of_several_orientations_are_averaged() -> None:
    x = torch.randn(5, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    priors = [Shrink(0.5), Shrink(0.25), Shrink(0.0)]
    out = SlicePrior(priors, (0, 2, 3))(x, torch.full((1, 1, 1, 1), 0.5))
    torch.testing.assert_close(out, 0.25 * x)
    assert [p.shapes for p in priors] == [[(5, 1, 3, 4)], [(3, 1, 5, 4)], [(4, 1, 5, 3)]]


def test_a_white_prior_knows_no_orientation() -> None:
    _, measurement = problem(SIDE)
    one = run(MBIR(0.0, renoise=False), measurement, SIDE)
    like = torch.empty(SIDE, 1, SIDE, SIDE, dtype=torch.float64)
    three = MBIR(0.0, orientations=(0, 2, 3), renoise=False)
    noise = Noise.of(0, names(SIDE))
    torch.testing.assert_close(three.run(prior(), measurement, like, noise=noise, steps=24), one, atol=1e-10, rtol=0)


def test_evaluations_are_an_upper_bound_for_all_orientations_together() -> None:
    _, measurement = problem()
    like = torch.empty(SLICES, 1, SIDE, SIDE, dtype=torch.float64)
    shrink = Shrink(0.5)
    MBIR(1.0, orientations=(0, 2, 3)).run(shrink, measurement, like, noise=Noise.of(0, names()), steps=10)
    assert 6 <= shrink.calls <= 10
    with pytest.raises(InputError, match="at least 3 evaluations"):
        MBIR(orientations=(0, 2, 3)).run(shrink, measurement, like, noise=Noise.of(0, names()), steps=2)


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="zero or more"):
        MBIR(-1.0)
    with pytest.raises(InputError, match="zero or more"):
        MBIR(math.nan)
    with pytest.raises(InputError, match="1 priors beside the first"):
        MBIR(orientations=(0, 2, 3), priors=(Shrink(1.0),))
    with pytest.raises(InputError, match="one process"):
        SlicePrior((Shrink(1.0), Gaussian(torch.zeros(1, 2), torch.ones(1, 2)).denoiser(process("vp"))), (0, 2))
    with pytest.raises(InputError, match="no such slices"):
        SlicePrior((Shrink(1.0),), (0,), axis=2)(torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1))
    with pytest.raises(InputError, match="one time"):
        SlicePrior((Shrink(1.0),) * 2, (0, 2))(torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 1, 1))
    assert adjoint_error(Moved(Rays(), 3), torch.ones(1, 1, 4, 2, 4).double(), torch.ones(1, 2, 9).double()) < 1e-10


@pytest.mark.parametrize(("shape", "axis"), [((6, 1, 4, 5), 0), ((2, 1, 5, 6, 4), 2)])
def test_the_dual_does_not_depend_on_how_many_lines_are_worked_on_together(
    shape: tuple[int, ...], axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    v = torch.randn(shape, generator=g, dtype=torch.float64)
    variance = torch.rand(shape[0], *(1,) * (len(shape) - 1), generator=g, dtype=torch.float64) + 0.5
    start = 0.1 * torch.randn(differences(v, axis).shape, generator=g, dtype=torch.float64)
    whole = total_variation_dual(v, variance, 0.3, start, axis)
    scale = laplace_scale(differences(v, axis))
    for few in (1, 50):
        monkeypatch.setattr("suite.volume._AT_ONCE", few)
        torch.testing.assert_close(total_variation_dual(v, variance, 0.3, start, axis), whole, rtol=0, atol=1e-15)
        assert laplace_scale(differences(v, axis)) == pytest.approx(scale, rel=1e-12)
