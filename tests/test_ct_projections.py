"""DICOM-CT-PD folders, on files written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ct_files import (
    disc_sinogram,
    write_ct_pd,
)

from domains.ct.data import read_scan
from suite.errors import InputError


def ct_pd_lines(rows: int = 1) -> tuple[np.ndarray, np.ndarray, float]:
    """Views of a disc at (12, -5) mm measured with the focal spot at (-rho sin phi, rho cos phi), and phi."""
    phi = np.linspace(0.3, 0.3 + 2 * np.pi, 36, endpoint=False)
    center = 39.25
    lines = disc_sinogram(
        np.rad2deg(phi) + 180, 80, 1.2858, center, source=595.0, detector=1085.6 - 595, curved=True, disc=(12, -5, 14)
    )
    return np.repeat(lines[:, None], rows, axis=1), phi, center


@pytest.mark.parametrize("rows", [1, 3])
def test_ct_pd_axial_fan(tmp_path: Path, rows: int) -> None:
    lines, phi, center = ct_pd_lines(rows)
    scan = read_scan(write_ct_pd(tmp_path / "pd", lines, phi, center=center))
    np.testing.assert_allclose(scan.line_integrals, lines, atol=1e-5)
    assert (scan.geometry, scan.detector) == ("fan", "curved")
    assert scan.source_origin_mm == pytest.approx(595)
    assert scan.origin_detector_mm == pytest.approx(490.6)
    assert scan.center_column == pytest.approx(center)
    assert scan.mu_water_per_mm == pytest.approx(0.0192)
    assert scan.photons == pytest.approx(2e5)
    assert any("parallel fans" in w for w in scan.warnings) == (rows > 1)
    # the source of view 0 by the format's law and by this package's
    theta = np.deg2rad(scan.theta_deg[0])
    np.testing.assert_allclose((np.sin(theta), -np.cos(theta)), (-np.sin(phi[0]), np.cos(phi[0])), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "HELICAL"}, "helical"),
        ({"heights": np.linspace(0, 20, 36)}, "helical"),
        ({"mode": "FFSZ"}, "flying focal spot"),
        ({"shift": 0.001}, "flying focal spot"),
        ({"source_detector": 500.0}, "nearer to the source"),
        ({"pitch": 0.0}, "positive number"),
    ],
)
def test_ct_pd_that_is_no_axial_fan_scan_is_refused(tmp_path: Path, changes: dict, says: str) -> None:
    lines, phi, center = ct_pd_lines()
    with pytest.raises(InputError, match=says):
        read_scan(write_ct_pd(tmp_path / "pd", lines, phi, center=center, **changes))


def test_flat_ct_pd_detector(tmp_path: Path) -> None:
    lines, phi, center = ct_pd_lines()
    assert read_scan(write_ct_pd(tmp_path / "pd", lines, phi, center=center, shape="FLAT")).detector == "flat"
