"""Cone beam through the command line: a volume is scanned, the file read back, and reconstructed by every method it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ct_runs import AFFINE, ct, image, phantom_hu, record, save_prior, write_phantom

from domains.ct.cone_problem import pose_cone
from domains.ct.data import describe, read_scan
from domains.ct.problem import GeometryConfig, pose
from domains.ct.tv_volume import tv_volume
from suite.errors import InputError

SIDE, SLICES = 24, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scan.h5`, 30 views in a cone of six slices; `prior.safetensors` with random weights."""
    path = tmp_path_factory.mktemp("cone")
    volume = write_phantom(path / "phantom.nii.gz", phantom_hu(SLICES, SIDE))
    words = ["--geometry", "cone", "--views", "30", "--photons", "1e6", "--quiet"]
    assert ct("simulate", volume, "-o", path / "scan.h5", *words) == 0
    save_prior(path / "prior.safetensors")
    return path


def run(folder: Path, out: Path, *words: str) -> Path:
    assert ct("reconstruct", folder / "scan.h5", "-o", out, "--quiet", *words) == 0
    return out


def test_the_file_holds_the_geometry(folder: Path) -> None:
    with h5py.File(folder / "scan.h5") as file:
        attributes = dict(file["diffsuite"].attrs)
        views, rows, columns = file["exchange/data"].shape
    assert attributes["geometry"] == "cone" and attributes["slice_mm"] == 3.0 and attributes["image_slices"] == SLICES
    assert attributes["source_origin_mm"] == 595.0 and attributes["origin_detector_mm"] == 490.6
    assert attributes["row_pitch_mm"] == pytest.approx(3.0 * (595.0 + 490.6) / 595.0)
    scan = read_scan(folder / "scan.h5")
    geometry = pose_cone(scan).geometry
    assert geometry.projection_shape == (views, rows, columns) and geometry.volume_shape == (SLICES, SIDE, SIDE)
    assert geometry.center_row == (rows - 1) / 2 and geometry.slice_mm == 3.0
    told = describe(folder / "scan.h5")
    assert (told["geometry"], told["image_slices"], told["missing"]) == ("cone", SLICES, [])
    assert "row_pitch_mm" not in describe_fan(folder)


def describe_fan(folder: Path) -> dict[str, object]:
    path = folder / "fan.h5"
    assert (
        ct(
            "simulate",
            folder / "phantom.nii.gz",
            "-o",
            path,
            "--geometry",
            "fan",
            "--views",
            "9",
            "--quiet",
            "--overwrite",
        )
        == 0
    )
    return describe(path)


@pytest.mark.parametrize(("method", "rmse"), [("fdk", 230.0), ("sirt", 160.0), ("tv", 110.0)])
def test_classical_methods_find_the_object(folder: Path, tmp_path: Path, method: str, rmse: float) -> None:
    out = run(folder, tmp_path / method, "--method", method)
    hu, truth = image(out / "recon.nii.gz"), phantom_hu(SLICES, SIDE)
    assert hu.shape == truth.shape
    assert float(np.sqrt(np.mean((hu - truth) ** 2))) < rmse
    found = record(out)
    assert (found["method"], found["estimator"], found["unit"], found["prior"]) == (method, "point", "HU", None)
    assert (out / "report.html").exists() and (out / "reference.nii.gz").exists()


def test_learned_methods_explain_the_data(folder: Path, tmp_path: Path) -> None:
    given = ["--prior", str(folder / "prior.safetensors"), "--set", "precision=float32", "--no-report"]
    images = []
    for method, words in (("dds", []), ("mbir", []), ("mbir", ["--set", "options.orientations=[2,3,4]"])):
        out = run(folder, tmp_path / str(len(images)), "--method", method, "--steps", "3", *given, *words)
        found = record(out)
        assert (found["method"], found["nfe"], found["estimator"]) == (method, 3, "point")
        assert found["misfit_chi2"] < 2
        images.append(image(out / "recon.nii.gz"))
    assert np.abs(images[0] - images[1]).max() > 2
    again = run(folder, tmp_path / "again", "--method", "mbir", "--steps", "3", *given)
    np.testing.assert_array_equal(image(again / "recon.nii.gz"), images[1])


def test_the_result_lies_where_the_volume_lay(folder: Path, tmp_path: Path) -> None:
    import nibabel as nib

    out = run(folder, tmp_path / "out", "--method", "fdk", "--no-report")
    np.testing.assert_allclose(nib.load(out / "recon.nii.gz").affine, AFFINE, atol=1e-4)


def test_what_the_file_does_not_tell_is_filled_and_said(folder: Path) -> None:
    scan = read_scan(folder / "scan.h5")
    bare = replace(scan, row_pitch_mm=None, center_row=None, slice_mm=None, image_slices=None, affine=None)
    problem = pose_cone(bare)
    geometry = problem.geometry
    assert geometry.slice_mm == geometry.pixel_size_mm and geometry.row_pitch_mm == geometry.plane.detector_pitch_mm
    seen = geometry.n_rows * geometry.row_pitch_mm * geometry.plane.source_origin_mm / geometry.plane.source_detector_mm
    assert seen - geometry.slice_mm < geometry.n_slices * geometry.slice_mm <= seen
    assert any("row_pitch_mm, center_row, slice_mm, image_slices" in sentence for sentence in problem.warnings)


def test_total_variation_flattens_noise_in_three_directions(folder: Path) -> None:
    problem = pose_cone(read_scan(folder / "scan.h5"))
    y, weights = problem.data
    even = tv_volume(problem.projector(), y, weights / 1000)
    free = tv_volume(problem.projector(), y, weights * 1000)
    for dim in (2, 3, 4):
        assert float(even.diff(dim=dim).abs().sum()) < float(free.diff(dim=dim).abs().sum())
    assert torch.isfinite(even).all()


def test_refusals(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = read_scan(folder / "scan.h5")
    with pytest.raises(InputError, match="flat detector"):
        pose_cone(replace(scan, detector="curved"))
    with pytest.raises(InputError, match="no slices of its own"):
        pose(scan, GeometryConfig())
    with pytest.raises(InputError, match="needs source_origin_mm"):
        pose_cone(replace(scan, source_origin_mm=None))
    for words, said in ((["--method", "daps"], "does not serve cone beam"), (["--method", "fbp"], "use one of fdk")):
        assert ct("reconstruct", folder / "scan.h5", "-o", tmp_path / "out", *words) == 2
        assert said in capsys.readouterr().err
    describe_fan(folder)
    assert ct("reconstruct", folder / "fan.h5", "-o", tmp_path / "out", "--method", "fdk") == 2
    assert "use fbp" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
