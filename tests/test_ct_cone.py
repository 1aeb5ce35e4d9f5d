"""Cone beam: line integrals of ellipsoids in closed form, exact adjoints, agreement with fan beam, FDK."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from domains.ct.cone import ConeGeometry, ConeProjector, cone
from domains.ct.fdk import fdk
from domains.ct.geometry import equal_angles, fan, parallel
from domains.ct.projector import Projector
from domains.ct.sirt import cgls, sirt
from suite.errors import InputError
from suite.gaussian import Gaussian
from suite.linalg import adjoint_error
from suite.measurement import Measurement
from suite.noise import Noise
from suite.process import process
from suite.volume import MBIR

MU = 0.02
GANTRY = {"source_origin_mm": 300.0, "origin_detector_mm": 200.0}

GEOMETRIES: dict[str, ConeGeometry] = {
    "centred": cone(equal_angles(10, 360), (18, 20, 20), 2.0, **GANTRY),
    "oblong voxels, offsets": cone(
        equal_angles(7, 360, 11.0), (12, 22, 17), 2.0, 3.1, n_bins=45, detector_pitch_mm=2.3, center_column=20.3,
        n_rows=23, row_pitch_mm=2.9, center_row=9.6, **GANTRY,
    ),
    "detector smaller than the volume": cone(
        equal_angles(6, 360), (16, 16, 16), 2.0, n_bins=9, n_rows=7, source_origin_mm=60.0, origin_detector_mm=30.0
    ),
    "detector larger than the volume": cone(
        equal_angles(5, 200), (5, 9, 11), 2.0, n_bins=60, n_rows=41, row_pitch_mm=1.3, **GANTRY
    ),
    "one row, one slice": cone(equal_angles(8, 360), (1, 12, 12), 2.0, n_rows=1, **GANTRY),
}  # fmt: skip


def ellipsoid_integrals(
    geometry: ConeGeometry, center: tuple[float, float, float], axes: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Chords `(V, R, K)` of the rays from the source to the detector's bins, by the quadratic formula."""
    plane = geometry.plane
    sin, cos = np.sin(plane.angles), np.cos(plane.angles)
    source = np.stack([plane.source_origin_mm * sin, -plane.source_origin_mm * cos, 0 * sin], -1)[:, None, None]
    foot = np.stack([-plane.origin_detector_mm * sin, plane.origin_detector_mm * cos, 0 * sin], -1)[:, None, None]
    across = np.stack([cos, sin, 0 * sin], -1)[:, None, None]
    bins = foot + plane.bin_positions[:, None] * across
    bins = bins + geometry.row_positions[:, None, None] * np.array([0.0, 0.0, 1.0])
    direction = (bins - source) / np.linalg.norm(bins - source, axis=-1, keepdims=True)
    scaled, start = direction / axes, (source - np.array(center)) / axes
    a, b, c = (scaled**2).sum(-1), (scaled * start).sum(-1), (start**2).sum(-1) - 1
    return np.asarray(2 * np.sqrt(np.maximum(b**2 - a * c, 0)) / a)


def grid(geometry: ConeGeometry) -> tuple[NDArray[np.float64], ...]:
    x, y = geometry.plane.pixel_centers()
    z, y, x = np.meshgrid(geometry.slice_positions, y, x, indexing="ij")
    return x, y, z


def ellipsoid(geometry: ConeGeometry, center: tuple[float, ...], axes: tuple[float, ...], sub: int = 4) -> torch.Tensor:
    """Share of each voxel that lies inside, from `sub^3` points."""
    total = np.zeros(geometry.volume_shape)
    steps = (np.arange(sub) - (sub - 1) / 2) / sub
    x, y, z = grid(geometry)
    pixel = geometry.plane.pixel_size_mm
    for i in steps:
        for j in steps:
            for k in steps:
                point = (x + i * pixel, y + j * pixel, z + k * geometry.slice_mm)
                total += sum(((p - c) / a) ** 2 for p, c, a in zip(point, center, axes, strict=True)) <= 1
    return torch.tensor(total / sub**3)[None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["compiled", "torch"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_adjoint_is_exact(name: str, backend: str, dtype: torch.dtype) -> None:
    op = ConeProjector(GEOMETRIES[name], backend=backend)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, *op.geometry.volume_shape, generator=g, dtype=dtype)
    y = torch.randn(2, 1, *op.geometry.projection_shape, generator=g, dtype=dtype)
    assert adjoint_error(op, x, y) < (1e-5 if dtype == torch.float32 else 1e-12)
    assert float(op(x).abs().max()) > 0


@pytest.mark.parametrize("name", GEOMETRIES)
def test_both_paths_hold_the_same_weights(name: str) -> None:
    compiled, plain = (ConeProjector(GEOMETRIES[name], backend=b) for b in ("compiled", "torch"))  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, *compiled.geometry.volume_shape, generator=g, dtype=torch.float64)
    y = torch.randn(1, 2, *compiled.geometry.projection_shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), plain(x), atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(compiled.adjoint(y), plain.adjoint(y), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(
    ("center", "axes"),
    [
        ((0.0, 0.0, 0.0), (40.0, 40.0, 40.0)),
        ((14.0, -9.0, 11.0), (24.0, 33.0, 18.0)),
        ((-8.0, 10.0, -16.0), (16.0, 13.0, 22.0)),
    ],
)
def test_line_integrals_of_an_ellipsoid(center: tuple[float, float, float], axes: tuple[float, float, float]) -> None:
    geometry = cone(equal_angles(8, 360, 5), (48, 52, 52), 2.0, **GANTRY)
    measured = ConeProjector(geometry)(ellipsoid(geometry, center, axes))[0, 0].numpy()
    expected = ellipsoid_integrals(geometry, center, axes)
    assert measured.sum() == pytest.approx(expected.sum(), rel=1e-3)
    assert np.sqrt(np.mean((measured - expected) ** 2)) < 0.015 * expected.max()
    deep = expected > 0.6 * expected.max()  # away from the rim, where a voxel is a coarse picture of it
    assert np.abs(measured - expected)[deep].max() < 0.03 * expected.max()


def test_the_middle_row_is_the_fan() -> None:
    geometry = cone(equal_angles(12, 360), (5, 24, 20), 2.0, n_rows=3, **GANTRY)
    volume = torch.rand(1, 1, 5, 24, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = ConeProjector(geometry)(volume)[:, :, :, 1]
    torch.testing.assert_close(rows, Projector(geometry.plane)(volume[:, :, 2]), atol=1e-6, rtol=1e-6)


def test_the_derivative_is_the_adjoint() -> None:
    op = ConeProjector(GEOMETRIES["oblong voxels, offsets"])
    x = torch.zeros(1, 1, *op.geometry.volume_shape, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 1, *op.geometry.projection_shape, dtype=torch.float64)
    (op(x) * y).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, op.adjoint(y))


@pytest.mark.parametrize("filter", ["ramp", "hann"])
@pytest.mark.parametrize(("views", "arc"), [(180, 360.0), (170, 250.0)])
def test_fdk_of_a_sphere_is_quantitative(filter: str, views: int, arc: float) -> None:
    geometry = cone(equal_angles(views, arc), (40, 40, 40), 3.0, source_origin_mm=400.0, origin_detector_mm=200.0)
    center, radius = (9.0, -12.0, 8.0), 34.0
    y = torch.tensor(MU * ellipsoid_integrals(geometry, center, (radius,) * 3), dtype=torch.float32)[None, None]
    volume = fdk(geometry, y, filter)[0, 0].numpy() / MU  # type: ignore[arg-type]
    x, y_, z = grid(geometry)
    distance = np.sqrt(sum((p - c) ** 2 for p, c in zip((x, y_, z), center, strict=True)))
    core, ring = distance < radius - 10, (distance > radius + 10) & (distance < radius + 20)
    plane = core & (np.abs(z) < 3)
    assert volume[plane].mean() == pytest.approx(1, abs=0.004)
    assert volume[core].mean() == pytest.approx(1, abs=0.01)  # off the plane FDK is an approximation
    assert np.abs(volume[core] - 1).max() < 0.05
    assert abs(volume[ring].mean()) < 0.01


def test_a_volume_from_cone_beam_data_by_mbir() -> None:
    """The method of stacks serves an operator of volumes; its data misfit comes down to the noise."""
    geometry = cone(equal_angles(24, 360), (8, 12, 12), 2.0, **GANTRY)
    truth = ellipsoid(geometry, (2.0, -1.0, 1.0), (9.0, 7.0, 6.0)).to(torch.float32)
    op = ConeProjector(geometry)
    noise = 0.2
    y = op(truth)
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    measurement = Measurement(op, y, noise)
    prior = Gaussian(torch.zeros(1, 12, 12), torch.full((1, 12, 12), 0.25)).denoiser(process("ve"))
    errors = []
    for coupling in (0.0, 1.0):
        method = MBIR(coupling, axis=2, renoise=False, iterations=30)
        x = method.run(prior, measurement, torch.empty_like(truth), noise=Noise.of(0, ["scan"]), steps=10)
        errors.append(float((x - truth).square().mean().sqrt()))
        assert float(measurement.misfit_chi2(x)) < 1.2
    assert errors[1] < errors[0] < 0.5 * float(truth.square().mean().sqrt())


def test_sirt_and_cgls_serve_cone_beam() -> None:
    geometry = cone(equal_angles(30, 360), (8, 14, 14), 2.0, **GANTRY)
    truth = MU * ellipsoid(geometry, (2.0, -1.0, 1.0), (9.0, 8.0, 6.0)).to(torch.float32)
    op = ConeProjector(geometry)
    for method, iterations in ((sirt, 200), (cgls, 40)):
        volume = method(op, op(truth), iterations=iterations)
        assert float((volume - truth).norm()) < 0.1 * float(truth.norm())


def test_what_it_refuses() -> None:
    flat = parallel(equal_angles(4), (8, 8))
    curved = fan(equal_angles(4), (8, 8), detector="curved", **GANTRY)
    for plane in (flat, curved):
        with pytest.raises(InputError, match="flat detector"):
            ConeGeometry(plane, 4, 1.0, 1.5, 4, 1.0)
    for values, match in (
        ({"n_rows": 0}, "n_rows"), ({"row_pitch_mm": 0.0, "n_rows": 4}, "row_pitch_mm"), ({"center_row": np.nan}, "center_row"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            cone(equal_angles(4), (4, 8, 8), **GANTRY, **values)  # type: ignore[arg-type]
    geometry = cone(equal_angles(4), (4, 8, 8), **GANTRY)
    with pytest.raises(InputError, match=r"volume have shape \(1, 1, 8, 8\)"):
        ConeProjector(geometry)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match="float32 or float64"):
        ConeProjector(geometry)(torch.zeros(1, 1, 4, 8, 8, dtype=torch.int64))
    with pytest.raises(InputError, match="projections have shape"):
        fdk(geometry, torch.zeros(1, 1, 3, 3, 3))
