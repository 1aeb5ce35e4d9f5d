"""Matrix-free linear algebra against direct solvers, eigendecompositions and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from suite.operators import (
    FFT,
    Convolve,
    Diagonal,
    FourierDiagonal,
    LinearOperator,
    Matrix,
    circulant_preconditioner,
    circulant_symbol,
    conjugate_gradient,
    gaussian_kernel,
    lanczos_function,
    operator_norm,
    pseudo_inverse,
)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def _mask(h: int, w: int) -> Tensor:
    return random(h, w, seed=3) > 0


def _spd(conditions: list[float], n: int = 24, dtype: torch.dtype = torch.float64) -> Tensor:
    """One symmetric matrix for each wanted condition number: `(B, n, n)`."""
    q = torch.linalg.qr(random(len(conditions), n, n)).Q
    values = torch.stack([torch.logspace(0, -np.log10(c), n, dtype=torch.float64) for c in conditions])
    return (q @ torch.diag_embed(values) @ q.mT).to(dtype)


def _apply(m: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (m @ x.unsqueeze(-1)).squeeze(-1)


def test_cg_solves_items_of_different_conditioning_and_scale() -> None:
    m = _spd([1.0, 1e2, 1e4, 1e6])
    b = random(4, 24, seed=1) * torch.tensor([1e-6, 1.0, 1e3, 1e6])[:, None]
    x = conjugate_gradient(_apply(m), b, iterations=400)
    torch.testing.assert_close(x, torch.linalg.solve(m, b), rtol=1e-6, atol=0)


def test_cg_in_float32_reaches_the_attainable_accuracy_and_stays() -> None:
    m = _spd([1.0, 1e2, 1e3])
    b = random(3, 24, seed=1)
    exact = torch.linalg.solve(m, b)
    for iterations in (100, 1000):
        x = conjugate_gradient(_apply(m.float()), b.float(), iterations=iterations).double()
        error = (x - exact).norm(dim=1) / exact.norm(dim=1)
        assert bool((error < torch.tensor([1e-6, 2e-5, 2e-4])).all())


def test_cg_batch_items_do_not_see_each_other() -> None:
    diagonal = torch.stack([torch.linspace(1, 3, 24), torch.logspace(0, 5, 24)]).double()
    b = random(2, 24, seed=1)
    both = conjugate_gradient(lambda x: diagonal * x, b, iterations=12)
    for i in range(2):
        alone = conjugate_gradient(lambda x, i=i: diagonal[i] * x, b[i : i + 1], iterations=12)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-6, atol=0)


def test_cg_tolerance_per_item_freezes_that_item() -> None:
    m = _spd([1e3, 1e3])
    b = random(1, 24, seed=1).repeat(2, 1)
    m[1] = m[0]
    x = conjugate_gradient(_apply(m), b, iterations=300, tolerance=torch.tensor([1e-1, 1e-9]))
    residual = (_apply(m)(x) - b).norm(dim=1) / b.norm(dim=1)
    assert 1e-3 < float(residual[0]) <= 1e-1
    assert float(residual[1]) <= 2e-9


def test_cg_starts_from_x0_and_uses_a_preconditioner() -> None:
    m = _spd([1e2]) + torch.diag(torch.logspace(0, 5, 24, dtype=torch.float64))
    b = random(3, 24, seed=1)
    exact = torch.linalg.solve(m[0], b.mT).mT
    diagonal = m[0].diagonal()
    kwargs = {"iterations": 20, "x0": exact[:1] + 1e-3}
    plain = conjugate_gradient(_apply(m), b, **kwargs)
    better = conjugate_gradient(_apply(m), b, preconditioner=lambda r: r / diagonal, **kwargs)
    assert float((better - exact).norm()) < 1e-3 * float((plain - exact).norm())


def test_cg_stops_on_breakdown_and_shows_nan() -> None:
    singular = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    b = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])  # inconsistent; in the null space; zero
    x = conjugate_gradient(_apply(singular), b, iterations=50)
    assert bool(torch.isfinite(x).all())
    assert torch.equal(x[1:], torch.zeros(2, 3))
    b[0, 0] = torch.nan
    assert bool(conjugate_gradient(_apply(singular), b, iterations=5)[0].isnan().any())


def test_cg_in_float32_solves_a_weak_direction_beside_a_strong_one() -> None:
    diagonal = torch.tensor([1e8, 1e8, 1.0, 1.0])
    x = conjugate_gradient(lambda v: diagonal * v, torch.ones(1, 4))
    torch.testing.assert_close(x, 1 / diagonal[None], rtol=1e-5, atol=0)


def test_cg_on_complex_hermitian_systems() -> None:
    a = random(2, 8, 8, dtype=torch.complex128)
    m = a @ a.mH + torch.eye(8)
    b = random(2, 8, dtype=torch.complex128, seed=1)
    torch.testing.assert_close(conjugate_gradient(_apply(m), b, iterations=100), torch.linalg.solve(m, b))


def test_cg_in_float32_does_not_blow_up_the_null_space() -> None:
    for views, error in ((3, 0.2), (6, 0.2), (10, 0.5)):  # beyond what float32 resolves, but no larger than the signal
        op = _tomograph(16, views)
        y = op(random(2, 1, 16, 16, dtype=torch.float32))
        expected = y.double() @ torch.linalg.pinv(op.matrix.double(), rtol=1e-3).mT
        x = pseudo_inverse(op, y, iterations=2000).flatten(1)
        assert float((x - expected).norm() / expected.norm()) < error


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_pseudo_inverse_is_the_least_norm_least_squares_solution(shape: tuple[int, int], dtype: torch.dtype) -> None:
    a = random(*shape, dtype=dtype)
    a[0] = a[1]  # rank deficient
    y = random(3, shape[0], dtype=dtype, seed=1)
    torch.testing.assert_close(pseudo_inverse(Matrix(a), y, iterations=100), y @ torch.linalg.pinv(a).mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_operator_norm_is_the_largest_singular_value_every_time(dtype: torch.dtype) -> None:
    a = random(30, 40, dtype=dtype)
    like = torch.zeros(1, 40, dtype=dtype)
    value = operator_norm(Matrix(a), like, iterations=500, tolerance=1e-7)
    assert value == pytest.approx(float(torch.linalg.matrix_norm(a, 2)), rel=1e-4)
    assert operator_norm(Matrix(a), like) == pytest.approx(value, rel=0.01)
    torch.manual_seed(5)  # the global generator has no influence
    assert operator_norm(Matrix(a), like, iterations=500, tolerance=1e-7) == value
    assert operator_norm(Diagonal(0.0), like) == 0.0


@pytest.mark.parametrize(
    "f", [torch.sqrt, lambda t: torch.exp(-3 * t), lambda t: 1 / (t + 0.1), lambda t: (t > 0.4).to(t.dtype)]
)
def test_lanczos_function_equals_the_eigendecomposition(f: Callable[[Tensor], Tensor]) -> None:
    m = _spd([2.0, 50.0, 1e3], n=16)
    v = random(3, 16, seed=1)
    values, vectors = torch.linalg.eigh(m)
    expected = (vectors @ torch.diag_embed(f(values.clamp_min(0))) @ vectors.mT @ v.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(lanczos_function(_apply(m), v, f, iterations=16), expected, rtol=1e-6, atol=1e-8)


def test_lanczos_function_of_images_converges_in_few_iterations() -> None:
    blur = Convolve(gaussian_kernel(1.0), (32, 32))
    v = random(4, 1, 32, 32, dtype=torch.float32)

    def shape_noise(t: Tensor) -> Tensor:
        return (1 / (t + torch.tensor([0.05, 0.1, 0.2, 0.4])[:, None])).sqrt()  # another function for each item

    spectrum = blur.padded.symbol.abs() ** 2
    expected = torch.stack(
        [FourierDiagonal((1 / (spectrum + e)).sqrt())(v[i]) for i, e in enumerate((0.05, 0.1, 0.2, 0.4))]
    )
    result = lanczos_function(blur.normal, v, shape_noise, iterations=20)
    assert float((result - expected).norm() / expected.norm()) < 1e-3


def test_lanczos_function_after_an_invariant_subspace_zero_vectors_and_complex() -> None:
    mask = Diagonal(_mask(5, 4))
    v = random(3, 5, 4)
    v[1] = 0
    result = lanczos_function(mask.normal, v, lambda t: 1 / (t + 1), iterations=10)
    torch.testing.assert_close(result, v / (mask.d + 1))  # two eigenvalues: done after two of the ten
    # An item that is done early waits for the others, whatever f is at zero.
    spectrum = torch.stack([torch.full((6,), 2.0), torch.linspace(1, 3, 6)]).double()
    w = random(2, 6)
    inverse = lanczos_function(lambda u: spectrum * u, w, lambda t: 1 / t, iterations=6)
    torch.testing.assert_close(inverse, w / spectrum)
    z = random(2, 5, 4, dtype=torch.complex128)
    op = Diagonal(_mask(5, 4)) @ FFT()
    expected = z + (np.exp(-1) - 1) * op.normal(z)
    torch.testing.assert_close(lanczos_function(op.normal, z, lambda t: torch.exp(-t), iterations=5), expected)


def _tomograph(n: int, views: int) -> Matrix:
    """Pixel-driven projection, linear in the detector: a small tomography matrix."""
    bins = int(1.5 * n)
    i, j = np.mgrid[:n, :n]
    x, y = (j - (n - 1) / 2).ravel(), ((n - 1) / 2 - i).ravel()
    matrix = np.zeros((views, bins, n * n), np.float32)
    for k, angle in enumerate(np.arange(views) * np.pi / views):
        s = x * np.cos(angle) + y * np.sin(angle) + (bins - 1) / 2
        low = np.floor(s).astype(int)
        np.add.at(matrix[k], (low, np.arange(n * n)), 1 - (s - low))
        np.add.at(matrix[k], (low + 1, np.arange(n * n)), s - low)
    return Matrix(torch.from_numpy(matrix.reshape(-1, n * n)), (1, n, n))


@pytest.mark.parametrize(
    "op, gain",
    [
        (Convolve(gaussian_kernel(1.5), (48, 48), boundary="zero"), 2.0),
        (_tomograph(32, 32), 2.0),
        (_tomograph(32, 16), 1.3),
    ],
)
@pytest.mark.parametrize("relative_shift", [1e-2, 1e-3, 1e-4])
def test_circulant_preconditioner_cuts_the_iterations(op: LinearOperator, gain: float, relative_shift: float) -> None:
    n = 48 if isinstance(op, Convolve) else 32
    like = torch.zeros(1, 1, n, n)
    normal = op.normal
    shift = relative_shift * operator_norm(op, like) ** 2
    rhs = op.adjoint(op(random(2, 1, n, n, dtype=torch.float32)))
    solutions, counts = [], []
    for preconditioner in (None, circulant_preconditioner(normal, like, shift)):
        calls = 0

        def shifted(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return normal(x) + shift * x

        solutions.append(
            conjugate_gradient(shifted, rhs, iterations=500, tolerance=1e-5, preconditioner=preconditioner)
        )
        counts.append(calls)
    assert counts[1] * gain < counts[0] < 500
    assert float((solutions[0] - solutions[1]).norm() / solutions[0].norm()) < 5e-3


def test_circulant_symbol_is_the_nearest_circulant_of_a_toeplitz_operator() -> None:
    kernel = random(3, 5)
    op = Convolve(kernel + kernel.flip(0, 1), (7, 8), boundary="zero")
    matrix = op(torch.eye(56, dtype=torch.float64).reshape(56, 1, 7, 8)).reshape(56, 56).mT
    dft = torch.kron(*(torch.fft.fft(torch.eye(n, dtype=torch.complex128), norm="ortho") for n in (7, 8)))
    nearest = (dft @ matrix.to(dft.dtype) @ dft.mH).diagonal().real.reshape(7, 8)  # in the Frobenius norm
    symbol = circulant_symbol(op, torch.zeros(1, 2, 7, 8, dtype=torch.float64))
    torch.testing.assert_close(symbol, nearest.expand(1, 2, 7, 8))


def test_circulant_preconditioner_of_a_periodic_operator_is_its_inverse_up_to_the_floor() -> None:
    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]])
    op = Convolve(kernel, (64, 64))
    x = random(2, 3, 64, 64, dtype=torch.float32)
    inverse = circulant_preconditioner(op.normal, x[:1], torch.tensor([0.1, 1.0]))
    shift = torch.tensor([0.1, 1.0])[:, None, None, None]
    restored = inverse(op.normal(x) + shift * x)
    assert float((restored - x).norm() / x.norm()) < 0.03  # the lags of the kernel, weighted by 1 - 2/64
