"""Operators: exact adjoints for every class, dense and library references, solvers against direct linear algebra."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import suite.operators
from suite.errors import InputError
from suite.operators import (
    FFT,
    Adjoint,
    Block,
    CoilSensitivities,
    Compose,
    Convolve,
    Diagonal,
    Downsample,
    FourierDiagonal,
    Identity,
    InverseCholesky,
    LinearOperator,
    Matrix,
    Separable,
    SliceAxis,
    Stack,
    Subsample,
    Sum,
    Tangent,
    ToComplex,
    adjoint_error,
    dot,
    gaussian_kernel,
)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def complex_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.complex64)


def dense(op: LinearOperator, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """The operator's matrix, column by column."""
    size = int(np.prod(shape))
    columns = op(torch.eye(size, dtype=dtype).reshape(size, *shape))
    return columns.flatten(1).mT


# --- every operator: adjoint, normal, batch ---------------------------------------------------------------------------

# name -> (classes it covers, build(h, w, dtype) -> (operator, item shape, domain is complex))
Built = tuple[LinearOperator, tuple[int, ...], bool]


def _mask(h: int, w: int) -> Tensor:
    mask = random(h, w, seed=3) > 0
    mask[0, 0] = True
    return mask


def _correlated(n: int, dtype: torch.dtype) -> Tensor:
    a = random(n, n, dtype=dtype, seed=5)
    return a @ a.mH + n * torch.eye(n, dtype=dtype)


OPERATORS: dict[str, Callable[[int, int, torch.dtype], Built]] = {
    "Identity": lambda h, w, t: (Identity(), (1, h, w), False),
    "Diagonal": lambda h, w, t: (Diagonal(random(h, w, dtype=t)), (2, h, w), False),
    "Diagonal complex": lambda h, w, t: (Diagonal(random(h, w, dtype=complex_of(t))), (2, h, w), True),
    "Diagonal mask": lambda h, w, t: (Diagonal(_mask(h, w)), (1, h, w), False),
    "Adjoint": lambda h, w, t: (Adjoint(Downsample((2, 2), (2 * h, 2 * w))), (1, h, w), False),
    "Compose": lambda h, w, t: (
        Diagonal(_mask(h, w))
        @ FFT()
        @ CoilSensitivities(random(3, h, w, dtype=complex_of(t)))
        @ ToComplex()
        @ Diagonal(0.3),
        (2, h, w),
        False,
    ),
    "Sum": lambda h, w, t: (
        Diagonal(random(h, w, dtype=t)) + 0.5 * FourierDiagonal(random(h, w, dtype=t)) - Identity(),
        (1, h, w),
        False,
    ),
    "Matrix": lambda h, w, t: (Matrix(random(6, h * w, dtype=t), (1, h, w), (2, 3)), (1, h, w), False),
    "Matrix complex": lambda h, w, t: (Matrix(random(5, h * w, dtype=complex_of(t)), (h, w)), (h, w), True),
    "Matrix real domain": lambda h, w, t: (Matrix(random(5, h * w, dtype=complex_of(t)), real=True), (h * w,), False),
    "Separable": lambda h, w, t: (Separable(random(3, h, dtype=t), random(5, w, dtype=t)), (2, h, w), False),
    "InverseCholesky": lambda h, w, t: (InverseCholesky(_correlated(h * w, t)), (h, w), False),
    "InverseCholesky complex": lambda h, w, t: (InverseCholesky(_correlated(h * w, complex_of(t))), (h, w), True),
    "FFT": lambda h, w, t: (FFT(), (2, h, w), True),
    "FFT one axis": lambda h, w, t: (FFT((-3,)), (h, w, 2), True),
    "FFT real": lambda h, w, t: (FFT(real=True), (1, h, w), False),
    "FourierDiagonal": lambda h, w, t: (FourierDiagonal(random(h, w, dtype=complex_of(t))), (2, h, w), False),
    "FourierDiagonal complex": lambda h, w, t: (
        FourierDiagonal(random(2, h, w, dtype=complex_of(t)), ndim=2, real=False),
        (2, h, w),
        True,
    ),
    "Convolve periodic": lambda h, w, t: (Convolve(random(3, 4, dtype=t), (h, w)), (1, h, w), False),
    "Convolve zero": lambda h, w, t: (Convolve(random(4, 3, dtype=t), (h, w), boundary="zero"), (2, h, w), False),
    "Convolve 3-D complex": lambda h, w, t: (
        Convolve(random(2, 3, 3, dtype=complex_of(t)), (3, h, w), boundary="zero"),
        (1, 3, h, w),
        True,
    ),
    "Convolve complex kernel, real domain": lambda h, w, t: (
        Convolve(random(3, dtype=complex_of(t)), (w,), boundary="zero", real=True),
        (h, w),
        False,
    ),
    "Downsample": lambda h, w, t: (
        Downsample((2, 3), (h, w)) @ Convolve(random(3, 3, dtype=t), (h, w)),
        (1, h, w),
        False,
    ),
    "Subsample": lambda h, w, t: (Subsample(_mask(h, w)), (3, h, w), False),
    "Subsample complex": lambda h, w, t: (Subsample(_mask(h, w)) @ FFT() @ ToComplex(), (2, h, w), False),
    "ToComplex": lambda h, w, t: (ToComplex(), (4, h, w), False),
    "CoilSensitivities": lambda h, w, t: (CoilSensitivities(random(3, h, w, dtype=complex_of(t))), (1, h, w), True),
    "Stack": lambda h, w, t: (
        Stack(Subsample(_mask(h, w)), Identity(), shapes=((2, int(_mask(h, w).sum())), (2, h, w))),
        (2, h, w),
        False,
    ),
    "Block": lambda h, w, t: (
        Block(Diagonal(random(h, w, dtype=t)), Convolve(random(3, 3, dtype=t), (h, w)), channels=(1, 1)),
        (2, h, w),
        False,
    ),
    "Tangent": lambda h, w, t: (
        Tangent(lambda u: torch.sin(u[:, :1] * u[:, 1:]) + u[:, :1].exp(), random(1, 2, h, w, dtype=t)),
        (2, h, w),
        False,
    ),
    "SliceAxis": lambda h, w, t: (
        SliceAxis(Convolve(random(3, 3, dtype=t), (h, w), boundary="zero"), axis=3),
        (1, h, 4, w),
        False,
    ),
}


def _subclasses(cls: type) -> set[type]:
    found = {c for c in cls.__subclasses__() if c.__module__.startswith("suite.operators")}
    return found.union(*(_subclasses(c) for c in found))


def test_every_operator_class_is_in_the_adjointness_test() -> None:
    tested = {name.split()[0] for name in OPERATORS}
    assert {c.__name__ for c in _subclasses(LinearOperator)} == tested
    assert {c.__name__ for c in _subclasses(LinearOperator)} <= set(suite.operators.__all__)


@pytest.mark.parametrize("name", OPERATORS)
@given(
    h=st.integers(1, 7),
    w=st.integers(1, 8),
    batch=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_adjoint_normal_and_batch(name: str, h: int, w: int, batch: int, dtype: torch.dtype, seed: int) -> None:
    op, shape, is_complex = OPERATORS[name](h, w, dtype)
    x = random(batch, *shape, dtype=complex_of(dtype) if is_complex else dtype, seed=100 + seed)
    ax = op(x)
    y = random(*ax.shape, dtype=ax.dtype, seed=300 + seed)
    exact = 1e-5 if dtype == torch.float32 else 1e-10
    assert op.domain_dtype.is_complex == is_complex
    assert adjoint_error(op, x, y) < exact
    back = op.adjoint(y)
    assert (back.shape, back.dtype) == (x.shape, x.dtype)
    scale = float(op.adjoint(ax).abs().max()) + 1e-3
    torch.testing.assert_close(op.normal(x), op.adjoint(ax), rtol=0, atol=10 * exact * scale)
    torch.testing.assert_close(op(x[-1:]), ax[-1:], rtol=0, atol=10 * exact * (float(ax.abs().max()) + 1e-3))
    torch.testing.assert_close(op.H.H(x), ax)
    if op.unitary:
        torch.testing.assert_close(op.adjoint(ax), x)
        torch.testing.assert_close(op(op.adjoint(y)), y)


# --- against dense matrices and libraries -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5), (7, 8), (1, 9)])
def test_fft_is_numpys_centred_orthonormal_transform(shape: tuple[int, int]) -> None:
    x = random(2, *shape, dtype=torch.complex128)
    shifted = np.fft.ifftshift(x.numpy(), axes=(1, 2))
    expected = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(1, 2))
    np.testing.assert_allclose(FFT()(x).numpy(), expected, atol=1e-12)
    centre = torch.zeros(1, *shape, dtype=torch.complex128)
    centre[0, shape[0] // 2, shape[1] // 2] = 1
    flat = torch.full_like(centre, (shape[0] * shape[1]) ** -0.5)
    torch.testing.assert_close(FFT()(centre), flat)  # a delta at the origin has a flat, real spectrum


def test_fft_refuses_the_wrong_field() -> None:
    with pytest.raises(TypeError, match="complex"):
        FFT()(random(1, 4, 4))
    with pytest.raises(TypeError, match="real"):
        FFT(real=True)(random(1, 4, 4, dtype=torch.complex128))


@pytest.mark.parametrize("boundary, mode", [("periodic", "wrap"), ("zero", "constant")])
@pytest.mark.parametrize("kernel_shape", [(3, 5), (7, 1), (4, 2), (5, 11)])
def test_convolve_is_scipys(boundary: str, mode: str, kernel_shape: tuple[int, int]) -> None:
    kernel, x = random(*kernel_shape), random(1, 1, 9, 6, seed=1)
    # scipy puts the origin of an even kernel one place lower when convolving.
    origin = tuple(0 if k % 2 else -1 for k in kernel_shape)
    flipped = kernel.numpy()[::-1, ::-1]
    expected = scipy.ndimage.correlate(x[0, 0].numpy(), flipped, mode=mode, origin=origin)
    result = Convolve(kernel, (9, 6), boundary=boundary)(x)[0, 0]
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-10)


def test_convolve_places_the_kernel_with_its_origin_at_half_its_size() -> None:
    delta = torch.zeros(1, 1, 8)
    delta[0, 0, 4] = 1
    out = Convolve(torch.tensor([1.0, 2.0, 3.0, 4.0]), (8,), boundary="zero")(delta)
    torch.testing.assert_close(out[0, 0], torch.tensor([0.0, 0, 1, 2, 3, 4, 0, 0]), atol=1e-6, rtol=0)


def test_gaussian_kernel_has_unit_sum_and_its_standard_deviation() -> None:
    kernel = gaussian_kernel(1.7, 3)
    r = torch.arange(kernel.shape[0]) - kernel.shape[0] // 2
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
    assert float((kernel.sum((1, 2)) * r**2).sum()) == pytest.approx(1.7**2, rel=3e-3)
    with pytest.raises(InputError, match="positive"):
        gaussian_kernel(0)


def test_fourier_diagonal_real_domain_uses_the_hermitian_part() -> None:
    symbol, x = random(5, 4, dtype=torch.complex128), random(2, 5, 4, seed=1)
    full = torch.fft.ifftn(symbol * torch.fft.fftn(x, dim=(-2, -1)), dim=(-2, -1))
    torch.testing.assert_close(FourierDiagonal(symbol)(x), full.real)


def test_coils_fft_mask_equal_the_explicit_sum() -> None:
    maps, x = random(3, 5, 4, dtype=torch.complex128), random(1, 2, 5, 4)
    mask = _mask(5, 4)
    image = (x[:, :1] + 1j * x[:, 1:]).numpy()
    coils = np.fft.ifftshift(maps.numpy() * image, axes=(-2, -1))
    expected = np.fft.fftshift(np.fft.fft2(coils, norm="ortho"), axes=(-2, -1)) * mask.numpy()
    result = (Diagonal(mask) @ FFT() @ CoilSensitivities(maps) @ ToComplex())(x)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


def test_structure_operators_place_their_entries() -> None:
    x = random(2, 4, 5, 6)
    assert torch.equal(ToComplex()(x), torch.complex(x[:, :2], x[:, 2:]))
    mask = _mask(5, 6)
    assert torch.equal(Subsample(mask)(x), x[..., mask])
    assert torch.equal(Downsample((2, 3), (5, 6))(x), x[:, :, ::2, ::3])


def test_block_adds_the_signals_and_stack_lists_the_measurements() -> None:
    x = random(2, 4, 5, 6)
    block = Block(Diagonal(2.0), Diagonal(3.0), channels=(2, 2))
    torch.testing.assert_close(block(x), 2 * x[:, :2] + 3 * x[:, 2:])
    mask = _mask(5, 6)
    stack = Stack(Subsample(mask), Diagonal(3.0), shapes=((4, int(mask.sum())), (4, 5, 6)))
    y = stack(x)
    first, second = stack.split(y)
    assert torch.equal(first, x[..., mask])
    assert torch.equal(second, 3 * x)
    assert torch.equal(stack.join([first, second]), y)
    with pytest.raises(TypeError, match="all real or all complex"):
        stack.join([first, second + 0j])


def test_slice_axis_treats_each_slice_alone() -> None:
    volume = random(2, 1, 4, 5, 3)
    matrix = Matrix(random(7, 15, seed=4), (1, 5, 3))
    result = SliceAxis(matrix)(volume)
    expected = torch.stack([matrix(volume[:, :, z]) for z in range(4)], 2)
    torch.testing.assert_close(result, expected)


def test_algebra_equals_matrix_algebra() -> None:
    a, b = random(6, 6), random(6, 6, seed=1)
    op_a, op_b = Matrix(a), Matrix(b)
    torch.testing.assert_close(dense(op_a @ op_b, (6,)), a @ b)
    torch.testing.assert_close(dense(op_a + op_b, (6,)), a + b)
    torch.testing.assert_close(dense(op_a - op_b, (6,)), a - b)
    torch.testing.assert_close(dense(0.1 * op_a, (6,)), 0.1 * a)
    torch.testing.assert_close(dense((op_a @ op_b).H, (6,)), (a @ b).mT)
    torch.testing.assert_close(dense((0.1 * op_a @ op_b).normal, (6,)), 0.01 * (a @ b).mT @ (a @ b))


def test_normal_of_masked_coils_needs_no_unitary_outer_factor() -> None:
    op = FFT() @ CoilSensitivities(random(2, 4, 4, dtype=torch.complex128)) @ ToComplex()
    assert repr(op.normal) == "Adjoint @ Diagonal @ ToComplex"


def test_compose_flattens_and_keeps_the_domain() -> None:
    op = Compose(Compose(FFT(), ToComplex()), Identity())
    assert len(op.ops) == 3
    assert op.unitary
    assert Compose(FFT(), ToComplex()).domain_dtype == torch.float32


def test_bad_arguments_get_one_sentence() -> None:
    with pytest.raises(InputError, match="does not map items"):
        Matrix(random(3, 4), (5,))
    with pytest.raises(InputError, match="boundary"):
        Convolve(random(3), (5,), boundary="reflect")
    with pytest.raises(InputError, match="2 dimensions"):
        Convolve(random(3, 3), (5,))
    with pytest.raises(InputError, match="positive definite"):
        InverseCholesky(-torch.eye(3))
    with pytest.raises(InputError, match="coil axis"):
        CoilSensitivities(random(4, 4, dtype=torch.complex128))
    with pytest.raises(InputError, match="stride"):
        Downsample((2,), (4, 4))


# --- singular value decomposition -------------------------------------------------------------------------------------

HAS_SVD: dict[str, Built] = {
    "diagonal": (Diagonal(random(5, 4, dtype=torch.complex128)), (1, 5, 4), True),
    "mask": (Diagonal(_mask(5, 4)), (2, 5, 4), False),
    "subsample": (Subsample(_mask(5, 4)), (2, 5, 4), False),
    "unitary": (FFT() @ ToComplex(), (2, 5, 4), False),
    "wide matrix": (Matrix(random(6, 20), (1, 5, 4), (2, 3)), (1, 5, 4), False),
    "tall matrix": (Matrix(random(9, 6), (2, 3)), (2, 3), False),
    "complex matrix": (Matrix(random(4, 6, dtype=torch.complex128)), (6,), True),
    "complex matrix, real domain": (Matrix(random(2, 6, dtype=torch.complex128), real=True), (6,), False),
    "complex tall matrix, real domain": (Matrix(random(5, 6, dtype=torch.complex128), real=True), (6,), False),
    "periodic blur": (Convolve(random(3, 4), (5, 6)), (1, 5, 6), False),
    "spectral filter": (FourierDiagonal(random(5, 6, dtype=torch.complex128), real=False), (5, 6), True),
    "k-space mask": (0.7 * (Diagonal(_mask(5, 4)) @ FFT() @ ToComplex() @ Diagonal(-3.0)), (2, 5, 4), False),
    "k-space samples": (Subsample(_mask(5, 4)) @ FFT(), (1, 5, 4), True),
    "weighted mask": (Diagonal(random(5, 4)) @ Diagonal(_mask(5, 4)) @ FFT(), (1, 5, 4), True),
    "separable": (Separable(random(3, 5), random(8, 6)), (2, 5, 6), False),
    "spectrum of a blur": (FFT(real=True) @ Convolve(random(3, 4), (5, 6)), (1, 5, 6), False),
}


@pytest.mark.parametrize("name", HAS_SVD)
def test_svd_reproduces_the_operator(name: str) -> None:
    op, shape, is_complex = HAS_SVD[name]
    svd = op.svd()
    x = random(3, *shape, dtype=torch.complex128 if is_complex else torch.float64, seed=7)
    s = svd.singular_values
    assert not s.is_complex()
    assert bool((s >= 0).all())
    c = svd.vh(x)
    torch.testing.assert_close(svd.v(c), x)  # V is unitary on the domain
    torch.testing.assert_close(dot(c, c), dot(x, x))
    ax = op(x)
    torch.testing.assert_close(svd.u(s * c), ax)
    torch.testing.assert_close(s * svd.uh(ax), s**2 * c)  # U^H A = diag(s) V^H
    y = random(*ax.shape, dtype=ax.dtype, seed=8)
    torch.testing.assert_close(svd.v(s * svd.uh(y)), op.adjoint(y))


def test_singular_values_are_those_of_the_dense_matrix() -> None:
    op = Convolve(random(3, 4), (5, 6))
    expected = torch.linalg.svdvals(dense(op, (5, 6)))
    torch.testing.assert_close(op.svd().singular_values.flatten().sort(descending=True).values, expected)


@pytest.mark.parametrize(
    "op",
    [
        Convolve(random(3, 3), (5, 5), boundary="zero"),
        Diagonal(_mask(5, 5)) @ Convolve(random(3, 3), (5, 5)),
        Sum(Identity(), Identity()),
        CoilSensitivities(random(2, 5, 5, dtype=torch.complex128)),
    ],
)
def test_operators_without_an_svd_say_what_has_one(op: LinearOperator) -> None:
    with pytest.raises(InputError, match=r"no singular value decomposition.*FourierDiagonal"):
        op.svd()
