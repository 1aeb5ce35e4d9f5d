"""The CT geometry and projector against closed forms, an independent implementation, and the adjoint identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.ct.geometry import Geometry, equal_angles, fan, parallel
from domains.ct.projector import Projector
from suite.errors import InputError
from suite.operators import adjoint_error

MU = 0.02


def random_pair(
    geometry: Geometry, batch: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1, *geometry.image_shape, generator=g, dtype=dtype)
    return x, torch.randn(batch, 1, *geometry.sinogram_shape, generator=g, dtype=dtype)


def ellipse_image(
    geometry: Geometry, center: tuple[float, float], axes: tuple[float, float], fine: int = 8
) -> torch.Tensor:
    """Area-averaged ellipse with semi-axes along x and y, in mm."""
    ny, nx = geometry.image_shape
    p = geometry.pixel_size_mm
    x = (np.arange(nx * fine) - (nx * fine - 1) / 2) * p / fine
    y = ((ny * fine - 1) / 2 - np.arange(ny * fine)) * p / fine
    inside = ((x[None] - center[0]) / axes[0]) ** 2 + ((y[:, None] - center[1]) / axes[1]) ** 2 <= 1
    mean = inside.reshape(ny, fine, nx, fine).mean((1, 3)) * MU
    return torch.tensor(mean, dtype=torch.float32)[None, None]


def ellipse_sinogram(geometry: Geometry, center: tuple[float, float], axes: tuple[float, float]) -> torch.Tensor:
    """Chord lengths (Kak and Slaney 1988, eq. 3.6): 2 A B sqrt(s^2 - t^2) / s^2, s^2 = A^2 cos^2 + B^2 sin^2."""
    phi, t = geometry.lines()
    t = t - center[0] * np.cos(phi) - center[1] * np.sin(phi)
    s2 = (axes[0] * np.cos(phi)) ** 2 + (axes[1] * np.sin(phi)) ** 2
    chord = 2 * axes[0] * axes[1] * np.sqrt(np.maximum(s2 - t**2, 0)) / s2
    return torch.tensor(MU * chord, dtype=torch.float32)[None, None]


ANALYTIC = {
    "parallel": parallel(equal_angles(45, 180, 3.0), (128, 128), 1.5),
    "parallel, wide image, offset detector": parallel(
        equal_angles(30, 360), (96, 160), 1.5, n_bins=260, detector_pitch_mm=0.9, center_column=140.3
    ),
    "fan, flat": fan(equal_angles(45, 360), (128, 128), 1.5, source_origin_mm=300, origin_detector_mm=200),
    "fan, curved": fan(
        equal_angles(45, 360), (128, 128), 1.5, source_origin_mm=300, origin_detector_mm=200, detector="curved"
    ),
}


@pytest.mark.parametrize("name", ANALYTIC)
def test_ellipse_has_its_closed_form_sinogram(name: str) -> None:
    geometry = ANALYTIC[name]
    center, axes = (14.0, -9.0), (48.0, 30.0)
    y = Projector(geometry)(ellipse_image(geometry, center, axes))
    exact = ellipse_sinogram(geometry, center, axes)
    assert torch.linalg.norm(y - exact) < 0.015 * torch.linalg.norm(exact)
    assert abs(float(y.sum() / exact.sum()) - 1) < 1e-3


def test_agrees_with_scikit_image_radon() -> None:
    skimage_data = pytest.importorskip("skimage.data")
    from skimage.transform import radon, resize

    image = resize(skimage_data.shepp_logan_phantom(), (129, 129), anti_aliasing=True)
    angles = equal_angles(24)
    geometry = parallel(angles, (129, 129), n_bins=129)
    y = Projector(geometry)(torch.tensor(image, dtype=torch.float32)[None, None])[0, 0].numpy()
    other = radon(image, angles, circle=True).T
    assert np.linalg.norm(y - other) < 0.02 * np.linalg.norm(other)


@settings(max_examples=40, deadline=None)
@given(
    ny=st.integers(1, 33),
    nx=st.integers(1, 33),
    views=st.integers(1, 9),
    bins=st.integers(1, 41),
    start=st.floats(-400, 400),
    offset=st.floats(-6, 6),
    pitch=st.floats(0.3, 3),
    beam=st.sampled_from(["parallel", "flat", "curved"]),
    batch=st.sampled_from([1, 3, 9]),
)
def test_adjoint_is_exact(
    ny: int, nx: int, views: int, bins: int, start: float, offset: float, pitch: float, beam: str, batch: int
) -> None:
    angles = equal_angles(views, 200.0, start)
    center = (bins - 1) / 2 + offset
    if beam == "parallel":
        geometry = parallel(angles, (ny, nx), 0.8, n_bins=bins, detector_pitch_mm=pitch, center_column=center)
    else:
        geometry = fan(
            angles, (ny, nx), 0.8, source_origin_mm=60, origin_detector_mm=20, detector=beam, n_bins=bins,
            detector_pitch_mm=pitch, center_column=center,
        )  # fmt: skip
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        x, y = random_pair(geometry, batch, dtype)
        for backend in ("compiled", "torch"):
            op = Projector(geometry, backend=backend)
            scale = torch.linalg.norm(x) * torch.linalg.norm(y) * 0.8 * max(ny, nx)
            gap = ((op(x) * y).sum() - (x * op.H(y)).sum()).abs()
            assert float(gap) <= limit * float(scale)


@pytest.mark.parametrize("name", ANALYTIC)
def test_adjoint_error_in_float32(name: str) -> None:
    x, y = random_pair(ANALYTIC[name], 10)
    assert adjoint_error(Projector(ANALYTIC[name]), x, y) < 1e-6


@pytest.mark.parametrize("name", ANALYTIC)
def test_compiled_and_torch_paths_agree(name: str) -> None:
    geometry = ANALYTIC[name].subset(slice(0, None, 4))
    x, y = random_pair(geometry, 3)
    compiled, sparse = Projector(geometry, backend="compiled"), Projector(geometry, backend="torch")
    assert torch.linalg.norm(compiled(x) - sparse(x)) < 1e-6 * torch.linalg.norm(sparse(x))
    assert torch.linalg.norm(compiled.H(y) - sparse.H(y)) < 1e-6 * torch.linalg.norm(sparse.H(y))


def test_torch_path_cuts_the_matrix_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domains.ct.sparse._ENTRIES_PER_PIECE", 5000)
    geometry = parallel(equal_angles(7), (40, 30))
    x, y = random_pair(geometry, 2)
    compiled, sparse = Projector(geometry, backend="compiled"), Projector(geometry, backend="torch", memory_mb=0.2)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), sparse(x), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(compiled.H(y), sparse.H(y), rtol=1e-5, atol=1e-4)


def test_slices_do_not_depend_on_their_batch() -> None:
    geometry = ANALYTIC["fan, flat"]
    op = Projector(geometry)
    x, y = random_pair(geometry, 11)
    together, back = op(x), op.H(y)
    for k in (0, 7, 8, 9, 10):
        torch.testing.assert_close(op(x[k : k + 1]), together[k : k + 1], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(op.H(y[k : k + 1]), back[k : k + 1], rtol=1e-5, atol=1e-4)
    channels = x[:10].reshape(5, 2, *geometry.image_shape)
    torch.testing.assert_close(op(channels).flatten(0, 1), together[:10, 0], rtol=1e-5, atol=1e-4)
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(op(strided), together)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    geometry = ANALYTIC["parallel"]
    x, y = random_pair(geometry, 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = Projector(geometry)(x), Projector(geometry).H(y)
        torch.set_num_threads(3)
        three = Projector(geometry)(x), Projector(geometry).H(y)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_gradients() -> None:
    geometry = fan([0.0, 30.0, 100.0], (5, 4), source_origin_mm=20, origin_detector_mm=5, n_bins=6)
    op = Projector(geometry)
    x, y = (v.requires_grad_() for v in random_pair(geometry, 2, torch.float64))
    assert torch.autograd.gradcheck(op.forward, (x,), check_forward_ad=True)
    assert torch.autograd.gradcheck(op.adjoint, (y,))
    assert torch.autograd.gradgradcheck(lambda v: op(v**2), (x,))


def test_fan_with_a_distant_source_is_parallel() -> None:
    angles = equal_angles(12, 360)
    beam = parallel(angles, (40, 40), n_bins=61, center_column=28.5)
    for detector in ("flat", "curved"):
        distant = fan(
            angles, (40, 40), source_origin_mm=1e8, origin_detector_mm=50, detector=detector, n_bins=61,
            detector_pitch_mm=1.0, center_column=28.5,
        )  # fmt: skip
        x, _ = random_pair(beam)
        torch.testing.assert_close(Projector(distant)(x), Projector(beam)(x), rtol=1e-4, atol=1e-3)


def test_fan_source_stands_below_at_zero_and_turns_counter_clockwise() -> None:
    angles = [0.0, 90.0]
    geometry = fan(angles, (41, 41), source_origin_mm=100, origin_detector_mm=100, n_bins=81, detector_pitch_mm=2.0)
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 30, 25] = 1.0  # x = 5, y = -10
    y = Projector(geometry)(image)[0, 0]
    # from (0, -100) the point lies 5 to the right, 90 ahead: u = 200 * 5 / 90; from (100, 0), heading -x, bins count
    # along (0, 1): 10 towards -, 95 ahead
    expected = [200 * 5 / 90 / 2 + 40, -200 * 10 / 95 / 2 + 40]
    centroid = (y * torch.arange(81)).sum(1) / y.sum(1)
    assert centroid.tolist() == pytest.approx(expected, abs=0.3)


def test_opposite_parallel_views_mirror() -> None:
    x, _ = random_pair(parallel([10.0], (31, 20)))
    there, back = (Projector(parallel([a], (31, 20)))(x) for a in (10.0, 190.0))
    torch.testing.assert_close(there, back.flip(-1), rtol=1e-4, atol=1e-4)


def test_subset_takes_the_views() -> None:
    geometry = ANALYTIC["parallel"]
    x, _ = random_pair(geometry, 8)
    y = Projector(geometry)(x)
    torch.testing.assert_close(Projector(geometry.subset(slice(1, None, 3)))(x), y[:, :, 1::3])
    torch.testing.assert_close(Projector(geometry.subset([7, 2]))(x), y[:, :, [7, 2]])


FOLDED = {
    "parallel": parallel(equal_angles(12, 180), (33, 33), 1.5),
    "parallel, odd number of views": parallel(equal_angles(9, 180), (32, 32)),
    "parallel, first view again": parallel([*equal_angles(8, 180), 180.0, 0.0], (32, 32)),
    "parallel, offset": parallel(equal_angles(24, 360), (32, 32), n_bins=60, center_column=27.25),
    "parallel, some rays miss": parallel(equal_angles(12, 180), (17, 17), n_bins=63),
    "fan": fan(equal_angles(16, 360), (32, 32), 1.5, source_origin_mm=120, origin_detector_mm=80),
    "fan, curved": fan(
        equal_angles(16, 360), (32, 32), 1.5, source_origin_mm=120, origin_detector_mm=80, detector="curved"
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_mirror_images_of_a_single_slice_carry_its_rays(name: str) -> None:
    geometry = FOLDED[name]
    op, other = Projector(geometry), Projector(geometry, backend="torch")
    folded = op._compiled.folded
    assert folded is not None
    entries = folded.members[folded.members < geometry.n_views * geometry.n_bins]
    assert sorted(entries) == sorted(np.concatenate([rays.ray for rays in op.rays]))  # each ray once
    x, y = random_pair(geometry, dtype=torch.float64)
    torch.testing.assert_close(op(x), other(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(op.adjoint(y), other.adjoint(y), rtol=1e-5, atol=1e-5)
    assert adjoint_error(op, x, y) < 1e-12


def test_a_geometry_without_symmetry_is_not_folded() -> None:
    for geometry in (parallel([3.0, 17.0, 50.0], (16, 16), n_bins=30, center_column=13.3), parallel([0.0], (16, 12))):
        assert Projector(geometry)._compiled.folded is None


def test_default_detectors_see_the_whole_image() -> None:
    for geometry in (ANALYTIC["parallel"], ANALYTIC["fan, flat"], ANALYTIC["fan, curved"]):
        assert geometry.fov_radius_mm >= geometry.image_radius_mm - 1e-6
        assert geometry.fov_radius_mm < geometry.image_radius_mm + 2 * geometry.pixel_size_mm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cone"}, "geometry"),
        ({"angles_deg": ()}, "angles"),
        ({"angles_deg": (0.0, float("nan"))}, "NaN"),
        ({"n_bins": 0}, "n_bins"),
        ({"pixel_size_mm": 0.0}, "pixel_size_mm"),
        ({"detector_pitch_mm": -1.0}, "detector_pitch_mm"),
        ({"image_shape": (0, 4)}, "image_shape"),
        ({"center_column": float("inf")}, "center_column"),
        ({"source_origin_mm": 20.0}, "source_origin_mm"),
        ({"origin_detector_mm": -5.0}, "origin_detector_mm"),
        ({"kind": "parallel", "detector": "curved"}, "curved"),
        ({"detector": "curved", "detector_pitch_mm": 50.0}, "fan opens"),
    ],
)
def test_impossible_geometry_is_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "kind": "fan", "angles_deg": (0.0,), "n_bins": 9, "detector_pitch_mm": 1.0, "center_column": 4.0,
        "image_shape": (32, 32), "pixel_size_mm": 1.0, "source_origin_mm": 90.0, "origin_detector_mm": 9.0,
    }  # fmt: skip
    Geometry(**good)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        Geometry(**(good | change))  # type: ignore[arg-type]


def test_tensors_that_do_not_fit_are_refused() -> None:
    op = Projector(parallel([0.0], (8, 9)))
    for bad in (torch.zeros(1, 1, 9, 8), torch.zeros(8, 9), torch.zeros(1, 1, 8, 9, dtype=torch.int32)):
        with pytest.raises(InputError):
            op(bad)
