"""Forward model, noise, coil maps, NUFFT, masks and simulation against closed forms and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mri_files import centred_fft, mri_data, phantom
from scipy.ndimage import gaussian_filter
from torch import Tensor

from domains.mri.coils import calibration_box, espirit, low_resolution, walsh
from domains.mri.containers import Volume
from domains.mri.data import read_kspace
from domains.mri.masks import KINDS, default_acs, sampling_mask
from domains.mri.noise import (
    compression_matrix,
    covariance_of,
    mix_coils,
    outer_noise,
    robust_covariance,
    whitening_matrix,
)
from domains.mri.nufft import Gridding, NonCartesianSense, density_compensation, nufft
from domains.mri.phase import smooth_phase
from domains.mri.physics import RIM, CartesianSense, Window, centre_crop, support_box, transformed_axes
from domains.mri.simulation import SimulationConfig, coil_maps, kspace_of
from suite.errors import InputError
from suite.linalg import dot
from suite.operators import FFT, LinearOperator


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_adjoint(op: LinearOperator, x: Tensor, tolerance: float) -> None:
    forward = op(x)
    y = draw(*forward.shape, seed=1, dtype=x.dtype)
    left, right = dot(forward, y), dot(x, op.adjoint(y))
    scale = (dot(forward, forward) * dot(y, y)).sqrt()
    assert float(((left - right).abs() / scale).max()) < tolerance


def test_window_is_the_box_of_the_support() -> None:
    maps = torch.zeros((2, 3, 40, 30), dtype=torch.complex64)
    maps[0, 1, 12, 20], maps[1, 2, 18, 25] = 1, 1j
    box = support_box(maps)
    assert box == (slice(12 - RIM, 18 + 1 + RIM), slice(20 - RIM, 30))  # the rim ends where the field does
    window = Window(box, (40, 30))
    small = draw(2, 1, 23, 18)
    whole = window(small)
    assert whole.shape == (2, 1, 40, 30) and torch.equal(whole[..., 4:27, 12:], small)
    assert float(whole.abs().sum()) == pytest.approx(float(small.abs().sum()))
    assert_adjoint(window, small, 1e-6)
    assert support_box(0 * maps) == (slice(0, 40), slice(0, 30))


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (8, 5)])
@pytest.mark.parametrize("axes", [(-2, -1), (-1,), (-2,)])
def test_cartesian_sense_is_the_centred_fft_of_each_coil(shape: tuple[int, int], axes: tuple[int, ...]) -> None:
    maps, x = draw(2, 3, *shape), draw(2, 1, *shape, seed=2)
    mask = torch.rand((2, 1, *shape), generator=torch.Generator().manual_seed(3)) > 0.4
    op = CartesianSense(maps, mask, axes)
    expected = mask.numpy() * centred_fft((maps * x).numpy(), axes)
    np.testing.assert_allclose(op(x).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(op.normal(x), op.adjoint(op(x)), atol=1e-4, rtol=1e-4)
    assert_adjoint(op, x, 1e-5)
    wide = CartesianSense(maps.to(torch.complex128), mask, axes)
    assert_adjoint(wide, x.to(torch.complex128), 1e-10)


def test_transformed_axes() -> None:
    lines = torch.zeros(1, 1, 6, 8, dtype=torch.bool)
    lines[..., ::2] = True
    assert transformed_axes(lines) == (-1,) and transformed_axes(lines.transpose(-1, -2)) == (-2,)
    lines[..., 0, 1] = True
    assert transformed_axes(lines) == (-2, -1) and transformed_axes(torch.ones(1, 1, 4, 4, dtype=torch.bool)) == (-1,)


@pytest.mark.parametrize(("n", "size"), [(8, 4), (9, 4), (8, 5), (9, 5), (4, 6)])
def test_crop_keeps_the_centre_pixel(n: int, size: int) -> None:
    image = torch.zeros(n, n)
    image[n // 2, n // 2] = 1
    cut = centre_crop(image, (size, size))
    kept = min(n, size)
    assert cut.shape == (kept, kept) and cut[kept // 2, kept // 2] == 1


@pytest.mark.parametrize("backend", ["finufft", "torch"])
@pytest.mark.parametrize("shape", [(20, 20), (17, 24)])
def test_nufft_is_the_sum_it_says(backend: str, shape: tuple[int, int]) -> None:
    if backend == "finufft":
        pytest.importorskip("finufft")
    ny, nx = shape
    rng = torch.Generator().manual_seed(0)
    points = (torch.rand((60, 2), generator=rng, dtype=torch.float64) - 0.5) * torch.tensor([ny, nx])
    x = draw(2, 3, ny, nx)
    turn_y = torch.exp(-2j * math.pi * points[:, :1] * (torch.arange(ny) - ny // 2) / ny)
    turn_x = torch.exp(-2j * math.pi * points[:, 1:] * (torch.arange(nx) - nx // 2) / nx)
    expected = torch.einsum("my,mx,bcyx->bcm", turn_y, turn_x, x.to(torch.complex128)) / math.sqrt(ny * nx)
    op = nufft(points, shape, backend)
    assert float((op(x)[:, :, 0] - expected).abs().max() / expected.abs().max()) < 3e-5
    assert_adjoint(op, x, 1e-5)
    assert_adjoint(op, x.to(torch.complex128), 1e-10)
    sense = NonCartesianSense(draw(2, 3, ny, nx, seed=5), op)
    image = draw(2, 1, ny, nx, seed=6)
    assert_adjoint(sense, image, 1e-5)
    exact = sense.adjoint(sense(image))
    assert float((sense.normal(image) - exact).abs().max() / exact.abs().max()) < 5e-5


def test_nufft_on_a_grid_is_the_fft_and_density_compensation_inverts_a_radial_scan() -> None:
    ky, kx = torch.meshgrid(torch.arange(12) - 6, torch.arange(9) - 4, indexing="ij")
    grid = torch.stack([ky.flatten(), kx.flatten()], -1).float()
    x = draw(1, 2, 12, 9)
    torch.testing.assert_close(nufft(grid, (12, 9), "torch")(x).reshape(1, 2, 12, 9), FFT()(x), atol=2e-4, rtol=0)
    angle, radius = torch.meshgrid(math.pi * torch.arange(60) / 60, torch.arange(64) / 2 - 16, indexing="ij")
    spokes = torch.stack([radius * angle.sin(), radius * angle.cos()], -1).reshape(-1, 2)
    op = Gridding(spokes, (32, 32))
    image = torch.from_numpy(phantom(1, 32, 32)).to(torch.complex64)[None]
    back = op.adjoint(density_compensation(op) * op(image))
    assert float((back - image).norm() / image.norm()) < 0.3  # corners of k-space are not sampled
    with pytest.raises(InputError, match="backend"):
        nufft(grid, (12, 9), "none")


# --- noise ------------------------------------------------------------------------------------------------------------


def test_whitening_makes_noise_white_and_compression_keeps_it_so() -> None:
    mixing = draw(5, 5, dtype=torch.complex128)
    white = draw(5, 40000, seed=1, dtype=torch.complex128) * math.sqrt(2)  # 1 in each part
    matrix = whitening_matrix(covariance_of(mixing @ white))
    again = covariance_of(mix_coils(matrix, (mixing @ white)[None])[0])
    torch.testing.assert_close(again, torch.eye(5, dtype=torch.complex128), atol=1e-6, rtol=0)
    keep = compression_matrix(draw(5, 300, seed=2), 3)
    torch.testing.assert_close(keep @ keep.mH, torch.eye(3, dtype=torch.complex128), atol=1e-9, rtol=0)
    strong = draw(1, 300, seed=4) * torch.tensor([[3.0], [1j], [0], [0], [-2]])
    assert torch.linalg.vector_norm(
        compression_matrix(strong, 1).to(strong.dtype) @ strong
    ) > 0.999 * torch.linalg.vector_norm(strong)
    with pytest.raises(InputError, match="singular"):
        whitening_matrix(torch.zeros(2, 2, dtype=torch.complex128))


def test_noise_is_found_in_the_outer_kspace_of_an_image() -> None:
    smooth = gaussian_filter(phantom(3, 96, 96), (0, 1.5, 1.5))
    clean = torch.from_numpy(centred_fft(smooth[:, None] * coil_maps(4, (96, 96)).numpy())).to(torch.complex64)
    sigma = 3.0
    data = clean + sigma * math.sqrt(2) * draw(*clean.shape, seed=9)
    mask = torch.ones(3, 1, 96, 96, dtype=torch.bool)
    found = robust_covariance(outer_noise(data, mask))
    assert abs(float(found.diagonal().real.mean().sqrt()) / sigma - 1) < 0.15


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 48), (61, 49)])
def test_espirit_and_walsh_find_the_maps_up_to_phase(shape: tuple[int, int]) -> None:
    true = coil_maps(6, shape, seed=4)
    object_ = (
        torch.from_numpy(phantom(1, *shape)).to(torch.complex64)
        * torch.exp(1j * smooth_phase(1, shape, torch.Generator().manual_seed(1)))[0]
    )
    data = FFT()(true * object_[:, None])
    box = calibration_box(torch.ones(shape, dtype=torch.bool))
    assert [s.stop - s.start for s in box] == [24, 24]
    inside = object_[0].abs() > 0
    for maps, least in ((espirit(data[..., box[0], box[1]], shape), 0.999), (walsh(low_resolution(data, box)), 0.97)):
        agreement = (true.conj() * maps[0]).sum(0).abs()[inside]
        assert float(agreement.quantile(0.02)) > least
        energy = maps.abs().square().sum(1)
        assert float(torch.minimum(energy, (1 - energy).abs()).max()) < 1e-4  # 0 or 1
    assert float((maps[0].abs().sum(0) > 0)[inside].float().mean()) > 0.98


def test_calibration_box_follows_the_mask() -> None:
    mask = torch.zeros(40, 30, dtype=torch.bool)
    mask[:, ::3] = True
    mask[:, 15 - 4 : 15 + 4] = True
    rows, columns = calibration_box(mask)
    assert (columns.stop - columns.start, mask[rows, columns].all()) == (8, True) and rows.stop - rows.start == 40
    mask[20, 15] = False
    with pytest.raises(InputError, match="centre of k-space"):
        calibration_box(mask)


def test_espirit_serves_the_real_brain() -> None:
    kspace = read_kspace(mri_data() / "kspace" / "brain_8ch_poisson_r8.npy")
    data = torch.from_numpy(kspace.data)
    box = calibration_box(torch.from_numpy(kspace.acquired))
    maps = espirit(data[..., box[0], box[1]], (230, 180))
    images = FFT().adjoint(data)
    combined = (maps.conj() * images).sum(1, keepdim=True)
    inside = maps.abs().sum(1, keepdim=True) > 0
    explained = (maps * combined).abs().square().sum() / torch.where(inside, images, 0).abs().square().sum()
    assert 0.3 < float(inside.float().mean()) < 0.9 and float(explained) > 0.8


# --- masks and simulation ---------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    shape=st.tuples(st.integers(24, 48), st.integers(24, 48)),
    acceleration=st.floats(1.5, 8),
    seed=st.integers(0, 99),
)
def test_masks_reach_the_acceleration_and_hold_the_centre(
    kind: str, shape: tuple[int, int], acceleration: float, seed: int
) -> None:
    acs = default_acs(kind, acceleration)
    mask = sampling_mask(kind, shape, acceleration, acs, np.random.default_rng(seed))
    assert mask.shape == (shape[-1:] if kind.endswith("1d") else shape)
    count = round(mask.size / acceleration)
    assert abs(int(mask.sum()) - count) <= (max(shape) if kind == "radial" else 0)
    assert mask[tuple(n // 2 for n in mask.shape)]
    again = sampling_mask(kind, shape, acceleration, acs, np.random.default_rng(seed))
    np.testing.assert_array_equal(mask, again)


def test_mask_that_cannot_be_is_refused() -> None:
    for bad in (("spiral", 4.0, 0.1), ("random1d", 0.5, 0.1), ("random1d", 4.0, 0.5)):
        with pytest.raises(InputError):
            sampling_mask(bad[0], (32, 32), bad[1], bad[2], np.random.default_rng(0))


@pytest.mark.parametrize("coils", [1, 5])
def test_simulation_keeps_the_definitions_of_snr_sigma_and_target(coils: int) -> None:
    volume = Volume(phantom(3), np.eye(4))
    scan = kspace_of(volume, SimulationConfig(acceleration=1, mask="gaussian2d", coils=coils, acs=0.0, snr=20.0))
    energy = 3 * phantom(1)[0].astype(float).ravel() @ phantom(1)[0].ravel()
    assert scan.acceleration == 1.0 and scan.target.shape == (3, 48, 40)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(scan.kspace, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    maps = coil_maps(coils, (48, 40)).numpy()
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-5)
    combined = (maps.conj() * images).sum(1)
    residual = images - maps * combined[:, None]  # noise alone, coils - 1 of its dimensions
    if coils > 1:
        level = np.sqrt((np.abs(residual) ** 2).mean() / 2 * coils / (coils - 1))
        assert abs(level / scan.noise_sigma - 1) < 0.03
    total = 2 * scan.noise_sigma**2 * scan.kspace.size
    signal = float((scan.target.astype(float) ** 2).sum())
    assert abs(10 * math.log10(signal / total) - 20) < 1e-3 and abs(signal / energy - 1) < 0.1
    assert np.abs(np.abs(combined) - scan.target).mean() < 3 * scan.noise_sigma


def test_simulation_depends_on_the_seed_alone() -> None:
    volume = Volume(phantom(2), np.eye(4))
    one, same, other = (kspace_of(volume, SimulationConfig(acceleration=3, seed=s)).kspace for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
