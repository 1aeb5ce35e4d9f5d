"""Bad input to every CT verb: one sentence on standard error, exit code 2, nothing left behind."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
from ct_runs import AFFINE, ct, phantom_hu, save_prior, simulated, write_phantom

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`phantom.nii.gz`, `scan.h5`, `prior.safetensors` and a finished `result`; not to be written to."""
    folder = tmp_path_factory.mktemp("good")
    simulated(folder)
    save_prior(folder / "prior.safetensors")
    words = ["-o", folder / "result", "--method", "fbp", "--no-report", "--quiet"]
    assert ct("reconstruct", folder / "scan.h5", *words) == 0
    return folder


@pytest.fixture
def work(good: Path, tmp_path: Path) -> Path:
    """A copy of the good files."""
    shutil.copytree(good, tmp_path / "work")
    return tmp_path / "work"


def refused(capsys: Capsys, work: Path, *words: str | Path) -> str:
    """The one sentence of a call that must be refused and must leave the folder as it was."""
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    folders = {path for path in work.rglob("*") if path.is_dir()}
    capsys.readouterr()
    code = ct(*words)
    out, err = capsys.readouterr()
    assert code == 2, (code, err)
    assert err.startswith("Error: ") and err.count("\n") == 1 and "Traceback" not in out + err, err
    assert out == ""
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before
    assert {path for path in work.rglob("*") if path.is_dir()} == folders
    return err


def calls(work: Path, bad: Path, kind: str) -> list[list[str | Path]]:
    """Every verb that reads a `kind` ("scan" or "volume"), with `bad` in its place."""
    out = work / "out"
    if kind == "scan":
        return [["info", bad], *(["reconstruct", bad, "-o", out, "--method", m, "--quiet"] for m in ("fbp", "tv"))]
    return [
        ["info", bad],
        ["simulate", bad, "-o", work / "new.h5", "--views", "8"],
        ["evaluate", work / "result", "--reference", bad],
        ["evaluate", bad, "--reference", work / "phantom.nii.gz"],
        ["train", "--data", bad, "-o", work / "new.safetensors"],
    ]


# --- files that are no files of their kind ---------------------------------------------------------------------------

NAMES = {"scan": ("scan.h5", "scan.mat"), "volume": ("volume.nii.gz", "volume.nii", "volume.mha", "volume.dcm")}
CASES = [(kind, name) for kind, names in NAMES.items() for name in names]


def empty(path: Path, _good: Path) -> None:
    path.write_bytes(b"")


def rubbish(path: Path, _good: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(3000))


def folder(path: Path, _good: Path) -> None:
    path.mkdir()


def missing(_path: Path, _good: Path) -> None:
    pass


def text(path: Path, _good: Path) -> None:
    path.write_text("patient;dose\n1;2\n")


@pytest.mark.parametrize("spoil", [empty, rubbish, folder, missing, text], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_no_file_of_its_kind(
    work: Path, capsys: Capsys, kind: str, name: str, spoil: Callable[[Path, Path], None]
) -> None:
    bad = work / f"bad-{name}"
    spoil(bad, work)
    for words in calls(work, bad, kind):
        assert "bad-" in refused(capsys, work, *words), words


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files(work: Path, capsys: Capsys, share: float) -> None:
    for kind, source in (("scan", "scan.h5"), ("volume", "phantom.nii.gz")):
        bad = work / f"bad-{source}"
        content = (work / source).read_bytes()
        bad.write_bytes(content[: int(share * len(content))])
        for words in calls(work, bad, kind):
            assert "bad-" in refused(capsys, work, *words), words


def test_the_wrong_kind_of_file(work: Path, capsys: Capsys) -> None:
    scan, volume, out = work / "scan.h5", work / "phantom.nii.gz", work / "out"
    for words in (
        ["reconstruct", volume, "-o", out],
        ["simulate", scan, "-o", work / "new.h5", "--views", "8"],
        ["evaluate", work / "result", "--reference", scan],
        ["evaluate", scan, "--reference", volume],
        ["train", "--data", scan, "-o", work / "new.safetensors"],
        ["reconstruct", work / "prior.safetensors", "-o", out],
    ):
        refused(capsys, work, *words)
    for prior in (volume, scan):
        assert prior.name in refused(capsys, work, "reconstruct", scan, "-o", out, "--quiet", "--prior", prior)


# --- scans -----------------------------------------------------------------------------------------------------------


def edited(name: str, value: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        old = file[f"exchange/{name}"][()]
        del file[f"exchange/{name}"]
        if value is not None:
            file[f"exchange/{name}"] = value(old)

    return edit


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file["diffsuite"].attrs[name] = value

    return edit


SCANS: dict[str, Callable[[h5py.File], None]] = {
    "all NaN": edited("data", lambda v: np.full_like(v, np.nan)),
    "no data": edited("data", None),
    "no angles": edited("theta", None),
    "one-dimensional": edited("data", np.ravel),
    "no views": edited("data", lambda v: v[:0]),
    "fewer angles than views": edited("theta", lambda v: v[:-1]),
    "text": edited("data", lambda v: np.bytes_(b"text")),
    "complex": edited("data", lambda v: v.astype(np.complex64)),
    "NaN angles": edited("theta", lambda v: v * np.nan),
    "white of another shape": edited("data_white", lambda v: v[..., :-1]),
    "no light": edited("data_white", np.zeros_like),
    "negative pixel size": attribute("pixel_size_mm", -1.0),
    "NaN pitch": attribute("detector_pitch_mm", np.nan),
    "zero photons": attribute("photons", 0.0),
    "negative water": attribute("mu_water_per_mm", -0.02),
    "unknown geometry": attribute("geometry", "helix"),
    "fan without distances": attribute("geometry", "fan"),
    "no image": attribute("image_size", 0),
    "odd affine": attribute("affine", np.eye(3)),
    "NaN affine": attribute("affine", np.full((4, 4), np.nan)),
}


@pytest.mark.parametrize("name", SCANS)
def test_bad_scans(work: Path, capsys: Capsys, name: str) -> None:
    with h5py.File(work / "scan.h5", "r+") as file:
        SCANS[name](file)
    refused(capsys, work, "reconstruct", work / "scan.h5", "-o", work / "out", "--method", "fbp", "--quiet")


# --- volumes ---------------------------------------------------------------------------------------------------------

VOLUMES: dict[str, np.ndarray] = {
    "all NaN": np.full((2, 48, 48), np.nan),
    "four-dimensional": np.zeros((2, 3, 48, 48)),
    "no slices": np.zeros((0, 48, 48)),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_bad_volumes(work: Path, capsys: Capsys, name: str) -> None:
    bad = work / "bad.nii.gz"
    nib.save(nib.Nifti1Image(VOLUMES[name].astype(np.float32).T, AFFINE), bad)
    for words in calls(work, bad, "volume"):
        assert "bad.nii.gz" in refused(capsys, work, *words), words


def test_volumes_that_do_not_agree(work: Path, capsys: Capsys) -> None:
    other = write_phantom(work / "other.nii.gz", phantom_hu(2))
    refused(capsys, work, "evaluate", work / "result", "--reference", other)
    assert "shape" in refused(capsys, work, "evaluate", work / "result", "--reference", other)
    air = write_phantom(work / "air.nii.gz", np.full((3, 48, 48), -1000.0))
    assert "body" in refused(capsys, work, "evaluate", work / "result", "--reference", air)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "reconstruct scan.h5 -o out --method nonsense",
        "reconstruct scan.h5 -o out --set nonsense=1",
        "reconstruct scan.h5 -o out --set options.nonsense=1 --prior prior.safetensors",
        "reconstruct scan.h5 -o out --set options.iterations=many --prior prior.safetensors",
        "reconstruct scan.h5 -o out --set options.strength=.nan --prior prior.safetensors",
        "reconstruct scan.h5 -o out --set options.warm_start=-1 --prior prior.safetensors",
        "reconstruct scan.h5 -o out --set options.warm_start=warm --prior prior.safetensors",
        "reconstruct scan.h5 -o out --set batch=0",
        "reconstruct scan.h5 -o out --set batch=-3",
        "reconstruct scan.h5 -o out --set geometry.pixel_size_mm=-1",
        "reconstruct scan.h5 -o out --set geometry.pixel_size_mm=0 --method fbp",
        "reconstruct scan.h5 -o out --set geometry.detector_pitch_mm=0 --method fbp",
        "reconstruct scan.h5 -o out --set geometry.photons=-1 --method fbp",
        "reconstruct scan.h5 -o out --set geometry.photons=0 --method fbp",
        "reconstruct scan.h5 -o out --set geometry.mu_water_per_mm=0 --method fbp",
        "reconstruct scan.h5 -o out --set geometry.electronic_sigma=-1 --method fbp",
        "reconstruct scan.h5 -o out --set geometry.image_size=0 --method fbp",
        "reconstruct scan.h5 -o out --set geometry.image_size=-4 --method fbp",
        "reconstruct scan.h5 -o out --set geometry.geometry=fan --method fbp",
        "reconstruct scan.h5 -o out --key nowhere --method fbp",
        "reconstruct scan.h5 -o out --steps 0",
        "reconstruct scan.h5 -o out --config phantom.nii.gz",
        "reconstruct scan.h5 -o scan.h5 --method fbp",
        "reconstruct scan.h5 --method fbp",
        "simulate phantom.nii.gz -o new.h5",
        "simulate phantom.nii.gz -o new.h5 --views 0",
        "simulate phantom.nii.gz -o new.h5 --views 8 --photons 0",
        "simulate phantom.nii.gz -o new.h5 --views 8 --photons -5",
        "simulate phantom.nii.gz -o new.h5 --views 8 --photons nan",
        "simulate phantom.nii.gz -o new.h5 --views 8 --electronic -1",
        "simulate phantom.nii.gz -o new.h5 --views 8 --arc 0",
        "simulate phantom.nii.gz -o new.h5 --views 8 --arc nan",
        "simulate phantom.nii.gz -o new.h5 --views 8 --slices 7",
        "simulate phantom.nii.gz -o new.h5 --views 8 --slices 2:1",
        "simulate phantom.nii.gz -o new.h5 --views 8 --slices 90:99",
        "simulate phantom.nii.gz -o new.h5 --views 8 --size 500",
        "simulate phantom.nii.gz -o new.h5 --views 8 --series 1.2",
        "simulate phantom.nii.gz -o scan.h5 --views 8",
        "simulate phantom.nii.gz -o phantom.nii.gz --views 8 --overwrite",
        "simulate phantom.nii.gz -o new.png --views 8 --geometry helix",
        "evaluate result --reference phantom.nii.gz --size 24",
        "evaluate result --reference phantom.nii.gz --slices 0:1",
        "evaluate result --reference phantom.nii.gz --slices 90:99",
        "train --data phantom.nii.gz -o new.pt",
        "train --data phantom.nii.gz -o prior.safetensors",
        "train --data phantom.nii.gz -o new.safetensors",
        "train --data phantom.nii.gz -o new.safetensors --set nonsense=1",
        "train --data phantom.nii.gz -o new.safetensors --set steps=0",
        "train --data phantom.nii.gz -o new.safetensors --set data.side=0",
        "train --data phantom.nii.gz -o new.safetensors --minutes -1 --set data.validation=[x]",
    ],
)
def test_bad_options(work: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.chdir(work)
    refused(capsys, work, *words.split())


def test_a_bad_archive_and_archives_without_images(work: Path, capsys: Capsys) -> None:
    bad = work / "bad.zip"
    bad.write_bytes(b"PK\3\4 no archive")
    assert "bad.zip" in refused(capsys, work, "train", "--data", bad, "-o", work / "new.safetensors")
    with zipfile.ZipFile(work / "text.zip", "w") as archive:
        archive.writestr("a.txt", "nothing")
    assert "text.zip" in refused(capsys, work, "train", "--data", work / "text.zip", "-o", work / "new.safetensors")


def test_a_prior_for_other_data(work: Path, capsys: Capsys) -> None:
    for name, changes in {"unit": {"unit": "dB"}, "architecture": {"architecture": "nonsense"}}.items():
        prior = save_prior(work / f"{name}.safetensors", **changes)
        words = ["reconstruct", work / "scan.h5", "-o", work / "out", "--quiet", "--prior", prior]
        assert prior.name in refused(capsys, work, *words)
