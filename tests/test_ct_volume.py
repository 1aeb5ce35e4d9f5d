"""`ct reconstruct --method mbir`: what it writes, slices left apart or coupled, memory, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ct_runs import ct, image, phantom_hu, record, save_prior, simulated, write_phantom

from domains.ct.problem import GeometryConfig, pose
from domains.ct.scans import assembled
from domains.ct.volume import BYTES_PER_PIXEL, VOLUMES, parts_within
from suite.errors import InputError
from suite.prior import PriorDenoiser

SLICES = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scan `scan.h5` of seven slices, and `prior.safetensors`, whose weights are random."""
    path = tmp_path_factory.mktemp("volume")
    simulated(path, volume=write_phantom(path / "phantom.nii.gz", phantom_hu(SLICES)))
    save_prior(path / "prior.safetensors")
    return path


def run(folder: Path, out: Path, *words: str, prior: bool = True) -> Path:
    given = ["--prior", folder / "prior.safetensors"] if prior else []
    common = ["--quiet", "--no-report", "--set", "precision=float32"]
    assert ct("reconstruct", folder / "scan.h5", "-o", out, *given, *common, *words) == 0
    return out


def test_a_stack_is_reconstructed_as_a_point_estimate(folder: Path, tmp_path: Path) -> None:
    out = run(folder, tmp_path / "out", "--method", "mbir", "--steps", "4")
    assert {path.name for path in out.iterdir()} == {"recon.nii.gz", "reference.nii.gz", "run.json"}
    found = record(out)
    assert (found["method"], found["estimator"], found["nfe"], found["unit"]) == ("mbir", "point", 4, "HU")
    assert np.isfinite(found["misfit_chi2"]) and found["seconds"]["network"] > 0
    assert image(out / "recon.nii.gz").shape == (SLICES, 48, 48)


def test_without_coupling_it_equals_dds_slice_by_slice(folder: Path, tmp_path: Path) -> None:
    same = ("--steps", "4", "--set", "options.strength=0.5")
    apart = ("--set", "options.coupling=0", "--set", "options.symmetries=false")
    dds = run(folder, tmp_path / "dds", "--method", "dds", *same, "--set", "batch=1")
    mbir = run(folder, tmp_path / "mbir", "--method", "mbir", *same, *apart)
    coupled = run(folder, tmp_path / "coupled", "--method", "mbir", "--steps", "4")
    expected = image(dds / "recon.nii.gz")
    np.testing.assert_allclose(image(mbir / "recon.nii.gz"), expected, atol=0.5)
    np.testing.assert_allclose(image(mbir / "reference.nii.gz"), image(dds / "reference.nii.gz"), atol=0.5)
    assert np.abs(image(coupled / "recon.nii.gz") - expected).max() > 2


def test_the_memory_budget_sets_the_parts_and_not_the_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    inner = PriorDenoiser.__call__

    def watched(self: PriorDenoiser, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(max(1, self.pixels // (48 * 48)))
        return inner(self, x, *rest)

    monkeypatch.setattr(PriorDenoiser, "__call__", watched)
    whole = run(folder, tmp_path / "whole", "--method", "mbir", "--steps", "4")
    assert min(seen) == SLICES
    budget = (2.5 * BYTES_PER_PIXEL + 4 * VOLUMES * SLICES) * 48 * 48 / 2**20
    parts = run(folder, tmp_path / "parts", "--method", "mbir", "--steps", "4", "--set", f"memory_mb={budget}")
    assert seen[-1] == 2 and record(parts)["nfe"] == 4
    np.testing.assert_allclose(image(parts / "recon.nii.gz"), image(whole / "recon.nii.gz"), atol=0.5)


def test_parts_cover_the_stack_within_the_budget() -> None:
    lines = np.random.default_rng(0).random((6, 400, 32), dtype=np.float32)
    scan = assembled(Path("scan.h5"), lines, np.arange(6) * 30.0, None, None)
    problem = pose(scan, GeometryConfig(image_size=256, pixel_size_mm=1.0))
    for budget in (1664.0, 1700.0, 2048.0, 8192.0, 1e6):
        groups = parts_within(problem, budget)
        assert [k for rows in groups for k in range(rows.start, rows.stop)] == list(range(400))
        largest = max(rows.stop - rows.start for rows in groups)
        assert (4 * VOLUMES * 400 + largest * BYTES_PER_PIXEL) * 256 * 256 <= budget * 2**20
    with pytest.raises(InputError, match="400 slices at once and needs 1664 MB"):
        parts_within(problem, 1600.0)


def test_coupling_calms_the_jitter_of_a_uniform_object(tmp_path: Path) -> None:
    """Slices that show one object and differ in their noise alone, with the shipped prior."""
    same = np.repeat(phantom_hu(1, 40), 4, axis=0)
    simulated(tmp_path, "--photons", "2e4", volume=write_phantom(tmp_path / "phantom.nii.gz", same))

    def jitter(method: str) -> float:
        out = run(tmp_path, tmp_path / method, "--method", method, "--steps", "8", prior=False)
        return float(np.abs(np.diff(image(out / "recon.nii.gz"), axis=0))[:, same[0] > -500].mean())

    assert jitter("mbir") < 0.9 * jitter("dds")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--samples", "2"], "point estimator"),
        (["--set", "options.axis=2"], "options.axis is fixed"),
        (["--set", "options.orientations=[0,1]"], "0 (axial), 2 (coronal), 3 (sagittal)"),
        (["--set", "options.orientations=[0,0]"], "0 (axial), 2 (coronal), 3 (sagittal)"),
        (["--set", "options.coupling=-1"], "zero or more"),
        (["--set", "options.coupling=much"], "options.coupling"),
        (["--set", "options.nothing=1"], "nothing"),
        (["--set", "memory_mb=0"], "memory_mb"),
        (["--set", "memory_mb=1.5"], "needs 3 MB or more, not 1.5"),
    ],
)
def test_what_it_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    out = tmp_path / "out"
    prior = ["--prior", folder / "prior.safetensors"]
    assert ct("reconstruct", folder / "scan.h5", "-o", out, "--quiet", *prior, "--method", "mbir", *words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_other_orientations_need_cubic_voxels(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "mbir", "--steps", "6", "--set", "options.orientations=[0,2,3]"]
    out = run(folder, tmp_path / "cubic", *words)  # 2 mm pixels, slices 3 mm apart
    assert record(out)["nfe"] == 6
    capsys.readouterr()
    fine = ["--set", "geometry.pixel_size_mm=0.5", "--prior", folder / "prior.safetensors", "--quiet"]
    assert ct("reconstruct", folder / "scan.h5", "-o", tmp_path / "flat", *words, *fine) == 2
    assert "3 mm apart with pixels of 0.5 mm" in capsys.readouterr().err
