"""FBP, SIRT, CGLS, TV and the preconditioner of CT, against closed forms, dense algebra and optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domains.ct.fbp import fbp, redundancy_weights, view_weights
from domains.ct.geometry import Geometry, equal_angles, fan, parallel
from domains.ct.physics import LogData, body_mask, hu_to_mu, log_data, log_weights, mu_to_hu, photon_counts, simulate
from domains.ct.precondition import RampPreconditioner
from domains.ct.projector import Projector
from domains.ct.sirt import cgls, sirt
from domains.ct.tv import (
    _compiled_step,
    _step,
    gradient,
    gradient_adjoint,
    level_weights,
    statistical_weights,
    total_variation,
    tv,
    tv_penalty,
)
from suite.errors import InputError
from suite.linalg import TensorMap, conjugate_gradient

MU = 0.02
FAN = {"source_origin_mm": 300.0, "origin_detector_mm": 200.0}
SHAPE, PIXEL = (96, 96), 2.0

FBP_CASES: dict[str, Geometry] = {
    "parallel 180": parallel(equal_angles(240), SHAPE, PIXEL),
    "parallel 360": parallel(equal_angles(360, 360), SHAPE, PIXEL),
    "parallel 270": parallel(equal_angles(360, 270, 40), SHAPE, PIXEL),
    "parallel, both ends of the arc": parallel(np.linspace(0, 180, 241), SHAPE, PIXEL),
    "parallel, shuffled golden angles": parallel(np.mod(np.arange(233) * 111.246, 180), SHAPE, PIXEL),
    "parallel, random angles": parallel(np.random.default_rng(0).uniform(0, 180, 400), SHAPE, PIXEL),
    "parallel, fine bins, offset": parallel(
        equal_angles(240), SHAPE, PIXEL, n_bins=260, detector_pitch_mm=1.2, center_column=120.7
    ),
    "parallel, oblong image": parallel(equal_angles(240), (80, 120), PIXEL),
    "fan flat 360": fan(equal_angles(480, 360), SHAPE, PIXEL, **FAN),
    "fan curved 360": fan(equal_angles(480, 360), SHAPE, PIXEL, detector="curved", **FAN),
    "fan flat, short scan": fan(equal_angles(400, 250, 20), SHAPE, PIXEL, **FAN),
    "fan curved, short scan": fan(equal_angles(400, 250, -130), SHAPE, PIXEL, detector="curved", **FAN),
    "fan flat, 300 degrees": fan(equal_angles(400, 300), SHAPE, PIXEL, **FAN),
}


def ellipse_sinogram(geometry: Geometry, center: tuple[float, float], axes: tuple[float, float]) -> torch.Tensor:
    phi, t = geometry.lines()
    t = t - center[0] * np.cos(phi) - center[1] * np.sin(phi)
    s2 = (axes[0] * np.cos(phi)) ** 2 + (axes[1] * np.sin(phi)) ** 2
    chord = 2 * axes[0] * axes[1] * np.sqrt(np.maximum(s2 - t**2, 0)) / s2
    return torch.tensor(MU * chord, dtype=torch.float32)[None, None]


def inside_ellipse(geometry: Geometry, center: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
    x, y = geometry.pixel_centers()
    return ((x - center[0]) / axes[0]) ** 2 + ((y[:, None] - center[1]) / axes[1]) ** 2 <= 1


def phantom(n: int = 64) -> torch.Tensor:
    """A body with lung, bone and a soft lesion in HU, `(1, n, n)`."""
    axis = (torch.arange(n) - (n - 1) / 2) * 64 / n
    x, y = axis[None], -axis[:, None]
    hu = torch.full((n, n), -1000.0)
    for cx, cy, a, b, value in (
        (0, 0, 28, 22, 30), (-12, 4, 8, 11, -800), (12, 4, 8, 11, -800), (0, -13, 4, 4, 700), (10, 4, 2.5, 2.5, 40),
        (3, 10, 5, 3, 80),
    ):  # fmt: skip
        hu[((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 <= 1] = value
    return hu[None]


def noisy(geometry: Geometry, volume: torch.Tensor, photons: float, seed: int = 0) -> LogData:
    clean = simulate(volume, geometry.pixel_size_mm, geometry, photons=None)
    counts = photon_counts(clean, photons, 5.0, torch.Generator().manual_seed(seed))
    return log_data(counts, photons, 5.0)


def rms(image: torch.Tensor, volume: torch.Tensor) -> float:
    """Error in HU inside the body."""
    mask = torch.from_numpy(body_mask(volume[0].numpy()))
    return float((mu_to_hu(image[0, 0]) - volume[0])[mask].square().mean().sqrt())


# --- FBP ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", ["ramp", "shepp-logan", "hann"])
@pytest.mark.parametrize("name", FBP_CASES)
def test_fbp_of_an_ellipse_is_quantitative(name: str, filter: str) -> None:
    geometry = FBP_CASES[name]
    center, axes = (10.0, -14.0), (50.0, 36.0)
    image = fbp(geometry, ellipse_sinogram(geometry, center, axes), filter)[0, 0].numpy() / MU  # type: ignore[arg-type]
    core = inside_ellipse(geometry, center, (axes[0] - 8, axes[1] - 8))
    ring = inside_ellipse(geometry, center, (axes[0] + 20, axes[1] + 20))
    ring &= ~inside_ellipse(geometry, center, (axes[0] + 8, axes[1] + 8))
    assert image[core].mean() == pytest.approx(1, abs=0.002)
    assert np.abs(image[core] - 1).max() < 0.01
    assert abs(image[ring].mean()) < 0.003


def test_fbp_agrees_with_scikit_image() -> None:
    transform = pytest.importorskip("skimage.transform")
    angles = equal_angles(180)
    geometry = parallel(angles, (65, 65), n_bins=65)
    image = hu_to_mu(phantom(65))
    y = Projector(geometry)(image[:, None])
    other = transform.iradon(y[0, 0].numpy().T, angles, filter_name="hann", circle=True)
    ours = fbp(geometry, y, "hann")[0, 0].numpy()
    circle = np.hypot(*np.meshgrid(np.arange(65) - 32, np.arange(65) - 32)) < 31
    assert np.linalg.norm((ours - other)[circle]) < 0.03 * np.linalg.norm(other[circle])


def test_smoother_filters_pass_less_noise() -> None:
    geometry = FBP_CASES["parallel 180"]
    noise = torch.randn(1, 1, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    spread = [float(fbp(geometry, noise, f).std()) for f in ("ramp", "shepp-logan", "hann")]  # type: ignore[arg-type]
    assert spread[0] > spread[1] > spread[2]
    # white noise through the ramp: var = (pi / V) * pi * sum h^2 / ..., so halving the views doubles the variance
    half = geometry.subset(slice(None, None, 2))
    assert float(fbp(half, noise[:, :, ::2]).var()) == pytest.approx(2 * spread[0] ** 2, rel=0.05)


def test_view_and_ray_weights_cover_the_half_circle_once() -> None:
    for name, geometry in FBP_CASES.items():
        weights = view_weights(geometry)[:, None] * redundancy_weights(geometry)
        center = round(geometry.center_column)
        assert weights[:, center].sum() == pytest.approx(np.pi, rel=0.03), name


def test_fbp_refuses_what_it_does_not_know() -> None:
    geometry = parallel([0.0, 90.0], (8, 8))
    with pytest.raises(InputError, match="filter"):
        fbp(geometry, torch.zeros(1, 1, *geometry.sinogram_shape), "box")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        fbp(geometry, torch.zeros(1, 1, 3, 3))


@pytest.mark.parametrize("views", [1, 2, 3])
def test_fbp_of_very_few_views_is_finite(views: int) -> None:
    geometry = parallel(equal_angles(views), (16, 16))
    image = fbp(geometry, torch.ones(1, 1, *geometry.sinogram_shape))
    assert bool(torch.isfinite(image).all())


# --- SIRT and CGLS -----------------------------------------------------------------------------------------------------


def test_cgls_solves_the_weighted_normal_equations() -> None:
    geometry = parallel(equal_angles(12), (8, 8))
    op = Projector(geometry)
    g = torch.Generator().manual_seed(0)
    y = torch.randn(2, 1, *geometry.sinogram_shape, generator=g, dtype=torch.float64)
    w = torch.rand(2, 1, *geometry.sinogram_shape, generator=g, dtype=torch.float64) + 0.1
    columns = torch.eye(64, dtype=torch.float64).reshape(64, 1, 1, 8, 8)  # one by one, as the slices are
    matrix = torch.stack([op(column).flatten() for column in columns], 1).numpy()
    x = cgls(op, y, 1e6 * w, iterations=400)  # far from the noise level, so that it does not stop by itself
    for k in range(2):
        root = w[k].numpy().ravel() ** 0.5
        expected = np.linalg.lstsq(root[:, None] * matrix, root * y[k].numpy().ravel(), rcond=None)[0]
        np.testing.assert_allclose(x[k].numpy().ravel(), expected, rtol=1e-5, atol=1e-6)


def test_cgls_stops_at_the_noise() -> None:
    geometry = parallel(equal_angles(40), (64, 64), 4.0)
    y, w = noisy(geometry, phantom(), 1e5)
    op = Projector(geometry)
    misfit = [float((w * (op(cgls(op, y, w, iterations=n)) - y) ** 2).mean()) for n in range(0, 40)]
    first = next(n for n, value in enumerate(misfit) if value <= 1)
    assert first > 3
    assert misfit[first:] == pytest.approx([misfit[first]] * len(misfit[first:]), rel=1e-4)


def test_sirt_converges_on_consistent_data() -> None:
    geometry = parallel(equal_angles(60), (32, 32), 8.0)
    truth = hu_to_mu(phantom(32))[:, None]
    op = Projector(geometry)
    y = op(truth)
    misfit = [float(torch.linalg.norm(op(sirt(op, y, iterations=n)) - y)) for n in (5, 50, 500)]
    assert misfit[0] > 5 * misfit[1] > 25 * misfit[2]
    assert float(torch.linalg.norm(sirt(op, y, iterations=500) - truth)) < 0.06 * float(torch.linalg.norm(truth))
    # the fixed point is the least-squares solution: its weighted form has the same one on consistent data
    weighted = sirt(op, y, torch.ones_like(y), iterations=500)
    assert float(torch.linalg.norm(weighted - truth)) < 0.06 * float(torch.linalg.norm(truth))


def test_iterations_treat_slices_apart() -> None:
    geometry = parallel(equal_angles(30), (64, 64), 4.0)
    y, w = noisy(geometry, torch.cat([phantom(), phantom() * 0.5 - 500]), 1e5)
    op = Projector(geometry)
    for method in (sirt, cgls, tv):
        both = method(op, y, w, iterations=10)
        for k in range(2):
            alone = method(op, y[k : k + 1], w[k : k + 1], iterations=10)
            assert float((both[k] - alone[0]).abs().max()) < 1e-5
    channels = tv(op, y.reshape(1, 2, *y.shape[2:]), w.reshape(1, 2, *y.shape[2:]), iterations=10)
    torch.testing.assert_close(channels[0], tv(op, y, w, iterations=10)[:, 0])


# --- TV ----------------------------------------------------------------------------------------------------------------


def test_gradient_and_its_adjoint() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 7, 5, generator=g, dtype=torch.float64)
    field = gradient(torch.randn(2, 1, 7, 5, generator=g, dtype=torch.float64))
    assert float((gradient(x) * field).sum() - (x * gradient_adjoint(field)).sum()) == pytest.approx(0, abs=1e-12)
    ramp = torch.arange(5.0).expand(1, 1, 7, 5)
    assert float(total_variation(ramp)) == pytest.approx(4 * 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_step_of_tv_is_the_plain_one(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)

    def draw(channels: int, *shape: int) -> torch.Tensor:
        return torch.randn(3, channels, *shape, generator=g, dtype=dtype)

    x, back, tau = draw(1, 7, 5), draw(1, 7, 5), draw(1, 7, 5).abs()
    p, numbers = gradient(draw(1, 7, 5)), [draw(1, 1, 1).abs() for _ in range(3)]
    x[2, 0, 3, 2] = torch.nan
    states = [(x.clone(), p.clone(), torch.empty_like(x), torch.empty_like(x)) for _ in range(2)]
    for step, (image, dual, *out) in zip((_step, _compiled_step), states, strict=True):
        for _ in range(4):
            step(image, dual, back, tau, *numbers, *out)
    for plain, compiled in zip(*states, strict=True):
        torch.testing.assert_close(compiled, plain, equal_nan=True)
    assert states[1][2][2].isnan().any(), "what is not a number shows"


def test_tv_reaches_the_minimum() -> None:
    """No direction descends from the result: pixels, blocks, the truth, FBP and random fields, both ways."""
    geometry = parallel(equal_angles(9), (16, 16), 16.0)
    op = Projector(geometry)
    y, w = noisy(geometry, phantom(16), 1e4)
    w = level_weights(y, w)
    penalty = 100.0
    pixels = torch.eye(256).reshape(256, 1, 16, 16)
    matrix = op(pixels).flatten(1).double()

    def objective(x: torch.Tensor) -> torch.Tensor:
        misfit = (w.double().flatten() * (x.flatten(1) @ matrix - y.double().flatten()) ** 2).sum(1)
        return 0.5 * misfit + penalty * total_variation(x)

    best = tv(op, y, w, penalty=penalty, iterations=2000).double()
    value = float(objective(best))
    blocks = torch.stack([torch.kron(torch.eye(16)[k].reshape(4, 4), torch.ones(4, 4)) for k in range(16)])[:, None]
    others = torch.cat([hu_to_mu(phantom(16))[:, None], fbp(geometry, y, "hann").clamp_min(0)]) - best
    random = torch.randn(50, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for directions in (pixels, blocks, others, random):
        unit = directions / torch.linalg.vector_norm(directions.flatten(1), dim=1).reshape(-1, 1, 1, 1)
        for step in (1e-4, -1e-4, 1e-3, -1e-3):
            assert float(objective((best + step * unit).clamp_min(0)).min()) > value * (1 - 1e-5)
    assert float(objective(tv(op, y, w, penalty=penalty).double())) < value * 1.02


def test_tv_recovers_a_piecewise_constant_image_from_few_views() -> None:
    geometry = parallel(equal_angles(20), (64, 64), 4.0)
    clean = simulate(phantom(), 4.0, geometry, photons=None)
    image = tv(Projector(geometry), clean, log_weights(clean, 1e5), penalty=100.0, iterations=400)
    assert rms(image, phantom()) < 0.1 * rms(fbp(geometry, clean, "hann"), phantom())


@pytest.mark.parametrize(("views", "photons"), [(15, 1e4), (30, 1e5), (30, 1e6), (120, 1e4), (120, 1e6)])
def test_automatic_tv_penalty_is_near_the_best(views: int, photons: float) -> None:
    geometry = parallel(equal_angles(views), (64, 64), 6.0)
    y, w = noisy(geometry, phantom(), photons)
    op = Projector(geometry)
    chosen = float(tv_penalty(op, y, level_weights(y, w)))
    errors = {f: rms(tv(op, y, w, penalty=f * chosen), phantom()) for f in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}
    assert rms(tv(op, y, w), phantom()) == pytest.approx(errors[1.0], rel=1e-3)
    # fitted to real slices: a piecewise constant phantom would bear more smoothing when there is little noise
    assert errors[1.0] < 1.35 * min(errors.values())
    assert errors[1.0] < 0.5 * rms(fbp(geometry, y, "hann"), phantom())


def test_tv_without_known_noise() -> None:
    geometry = parallel(equal_angles(30), (64, 64), 6.0)
    clean = simulate(phantom(), 6.0, geometry, photons=None)
    y, _ = noisy(geometry, phantom(), 1e5)
    op = Projector(geometry)
    for sinogram in (clean, y):
        image = tv(op, sinogram)
        assert rms(image, phantom()) < 0.5 * rms(fbp(geometry, sinogram, "hann"), phantom())
    assert bool(torch.isfinite(statistical_weights(torch.zeros_like(y))).all())
    assert float(tv(op, torch.zeros_like(y)).abs().max()) < 1e-6


def test_tv_keeps_hounsfield_units() -> None:
    geometry = parallel(equal_angles(30), (128, 128), 3.0)
    volume = phantom(128)
    errors = []
    for seed in range(3):
        y, w = noisy(geometry, volume, 1e5, seed)
        mask = torch.from_numpy(body_mask(volume[0].numpy()))
        errors.append(float((mu_to_hu(tv(Projector(geometry), y, w)[0, 0]) - volume[0])[mask].mean()))
    assert abs(np.mean(errors)) < 5


def test_tv_refuses_a_negative_penalty() -> None:
    geometry = parallel([0.0, 90.0], (8, 8))
    with pytest.raises(InputError, match="penalty"):
        tv(Projector(geometry), torch.ones(1, 1, *geometry.sinogram_shape), penalty=-1.0)


# --- preconditioner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_preconditioner_is_positive_and_saves_iterations(beam: str) -> None:
    angles = equal_angles(60, 180 if beam == "parallel" else 360)
    geometry = parallel(angles, (64, 64), 4.0) if beam == "parallel" else fan(angles, (64, 64), 4.0, **FAN)
    op = Projector(geometry)
    y, w = noisy(geometry, phantom(), 1e5)
    shift = 2.5e3

    def normal(x: torch.Tensor) -> torch.Tensor:
        return op.H(w * op(x)) + shift * x

    inverse = RampPreconditioner(op, w)(shift)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 1, 64, 64, generator=g)
    assert float((a * inverse(b)).sum()) == pytest.approx(float((b * inverse(a)).sum()), rel=1e-3)
    assert float((a * inverse(a)).sum()) > 0

    rhs = op.H(w * y)

    def residual(preconditioner: TensorMap | None, iterations: int) -> float:
        x = conjugate_gradient(normal, rhs, iterations=iterations, preconditioner=preconditioner)
        return float(torch.linalg.norm(normal(x) - rhs) / torch.linalg.norm(rhs))

    assert residual(inverse, 15) < 0.3 * residual(None, 15)
    assert residual(inverse, 15) < residual(None, 30)


def test_preconditioner_takes_a_shift_and_weights_for_each_item() -> None:
    op = Projector(parallel(equal_angles(10), (12, 9)))
    g = torch.Generator().manual_seed(0)
    w = torch.rand(2, 1, *op.geometry.sinogram_shape, generator=g)
    r = torch.randn(2, 1, 12, 9, generator=g)
    shift = torch.tensor([0.1, 5.0])
    both = RampPreconditioner(op, w, scale=3.0)(shift.reshape(2, 1, 1, 1))(r)
    for k in range(2):
        alone = RampPreconditioner(op, w[k : k + 1], scale=3.0)(float(shift[k]))(r[k : k + 1])
        torch.testing.assert_close(both[k : k + 1], alone)
