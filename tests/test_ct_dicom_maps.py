"""DICOM maps beside a derived CT series, the validity of all that the CT verbs write as DICOM, and what must not be told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from ct_files import phantom, write_ct_series
from ct_runs import ct, record, save_prior
from test_ct_dicom_write import MADE, bare_volume, complaints, source_volume

from domains.ct import dicom_maps
from domains.ct.containers import Volume
from domains.ct.data import read_volume, write_series
from domains.ct.dicom_maps import PRIOR_SHARE, STD, Quantity, write_map
from suite.errors import InputError

SECRETS = ("Secret", "SECRET1", "19500101")

hd = pytest.importorskip("highdicom")


def map_of(volume: Volume) -> Volume:
    """A map of different numbers on the grid of `volume`."""
    values = np.random.default_rng(0).gamma(2, 10, volume.data.shape).astype(np.float32)
    return replace(volume, data=values, unit="HU", valid=None)


def written(tmp_path: Path, volume: Volume, quantity: Quantity = STD) -> tuple[list[Path], Path, Volume]:
    files, values = write_series(volume, tmp_path / "dicom", MADE), map_of(volume)
    return files, write_map(values, files, tmp_path / "map.dcm", quantity, MADE), values


def frames(path: Path) -> np.ndarray:
    """The stored numbers `(frame, y, x)`; their mapping to real-world values is checked to be the identity."""
    dataset = pydicom.dcmread(path)
    mapping = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    return np.asarray(dataset.pixel_array).reshape(-1, dataset.Rows, dataset.Columns)


@pytest.mark.parametrize("quantity", [STD, PRIOR_SHARE])
def test_a_map_reads_back_with_its_values_unit_and_places(tmp_path: Path, quantity: Quantity) -> None:
    files, path, values = written(tmp_path, source_volume(tmp_path), quantity)
    read = hd.imread(path)
    assert read.SOPClassUID == pydicom.uid.ParametricMapStorage
    series = [pydicom.dcmread(file) for file in files]
    for dataset, frame in zip(series, values.data, strict=True):
        (number,) = [
            k for k, item in enumerate(read.PerFrameFunctionalGroupsSequence, 1)
            if item.PlanePositionSequence[0].ImagePositionPatient == dataset.ImagePositionPatient
        ]  # fmt: skip
        np.testing.assert_array_equal(frames(path)[number - 1], frame)
        (reference,) = read.PerFrameFunctionalGroupsSequence[number - 1].DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    shared = read.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == series[0].PixelSpacing
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == series[0].ImageOrientationPatient
    mapping = shared.RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == quantity.unit.value
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert read[keyword].value == series[0][keyword].value
    assert read.SeriesInstanceUID not in {s.SeriesInstanceUID for s in series}
    assert read.ContributingEquipmentSequence[0].SoftwareVersions == "0.1"


def test_geometry_is_that_of_the_nifti_result(tmp_path: Path) -> None:
    """highdicom's affine of the map against ours, through flips, offsets and units."""
    volume = bare_volume()
    _, path, values = written(tmp_path, volume)
    read = hd.imread(path).get_volume(apply_real_world_transform=True)
    ours = volume.affine @ np.array([3, 5, 2, 1.0])  # voxel x = 3, y = 5, z = 2
    lps = ours[:3] * (-1, -1, 1)
    k, i, j = np.rint(read.map_reference_to_indices(lps[None]))[0].astype(int)
    assert read.array[k, i, j] == values.data[2, 5, 3]


def test_a_map_is_the_same_when_made_again(tmp_path: Path) -> None:
    files, path, values = written(tmp_path, bare_volume())
    again = write_map(values, files, tmp_path / "again.dcm", STD, MADE)
    assert pydicom.dcmread(again).SOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID
    other = write_map(values, files, tmp_path / "other.dcm", PRIOR_SHARE, MADE)
    assert pydicom.dcmread(other).SOPInstanceUID != pydicom.dcmread(path).SOPInstanceUID


def test_a_map_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, path, values = written(tmp_path, bare_volume())
    path.unlink()
    with pytest.raises(InputError, match="does not match its DICOM series"):
        write_map(values, files[:-1], path, STD, MADE)
    values.data[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        write_map(values, files, path, STD, MADE)
    monkeypatch.setattr(dicom_maps, "available", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'diffsuite\[dicom\]'"):
        write_map(values, files, path, STD, MADE)
    assert not path.exists()


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("source", ["bare", "own", "pydicom"])
@pytest.mark.parametrize("quantity", [STD, PRIOR_SHARE])
def test_an_independent_validator_finds_no_new_error_in_a_map(tmp_path: Path, source: str, quantity: Quantity) -> None:
    if source == "bare":
        volume, old = bare_volume(), set()
    elif source == "own":
        volume = source_volume(tmp_path)
        old = complaints(volume.sources[0])
    else:
        path = Path(str(pydicom.data.get_testdata_file("CT_small.dcm")))
        volume, old = read_volume(path), complaints(path)
    assert complaints(written(tmp_path, volume, quantity)[1]) <= old


def test_real_series_give_valid_maps(ct_data: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(ct_data / "mixed_nysbu_slices_dicom.zip", tmp_path / "real")
    sources = sorted(path for path in (tmp_path / "real").rglob("*") if path.is_file())[::4]
    for k, source in enumerate(sources):
        volume = read_volume(source)
        files, path, values = written(tmp_path / str(k), volume)
        np.testing.assert_array_equal(frames(path), values.data)
        if shutil.which("dciodvfy"):
            old = complaints(source)
            assert complaints(path) <= old and complaints(files[0]) <= old


# --- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ct reconstruct --samples 2` makes of a scan that was simulated from a DICOM series; `told.txt` beside it."""
    folder = tmp_path_factory.mktemp("chain")
    write_ct_series(folder / "source", phantom(2, 32, 32))
    save_prior(folder / "prior.safetensors")
    words = ["--steps", "2", "--samples", "2", "--prior", folder / "prior.safetensors"]
    with pytest.MonkeyPatch.context() as patch:
        told: list[str] = []
        patch.setattr("click.echo", lambda message=None, **_: told.append(str(message)))
        assert ct("simulate", folder / "source", "-o", folder / "scan.h5", "--views", "20") == 0
        assert ct("reconstruct", folder / "scan.h5", "-o", folder / "out", *words) == 0
    (folder / "told.txt").write_text("\n".join(told))
    return folder / "out"


def test_reconstruct_writes_the_standard_deviation_as_a_map(result: Path) -> None:
    read = hd.imread(result / "dicom_maps/std.dcm")
    std = nib.load(result / "std.nii.gz").get_fdata().transpose(2, 1, 0)
    place = [float(g.PlanePositionSequence[0].ImagePositionPatient[2]) for g in read.PerFrameFunctionalGroupsSequence]
    np.testing.assert_allclose(frames(result / "dicom_maps/std.dcm")[np.argsort(place)], std, rtol=1e-6)
    assert "dicom_maps/std.dcm" in record(result)["outputs"]
    series = [pydicom.dcmread(path) for path in (result / "dicom").iterdir()]
    assert {str(s.StudyInstanceUID) for s in series} == {str(read.StudyInstanceUID)}
    if shutil.which("dciodvfy"):
        old = set().union(*map(complaints, (result.parent / "source").iterdir()))
        for path in (*(result / "dicom").iterdir(), result / "dicom_maps/std.dcm"):
            assert complaints(path) <= old


def test_the_patient_is_in_the_dicom_objects_and_nowhere_else(result: Path) -> None:
    assert pydicom.dcmread(result / "dicom/0001.dcm").PatientName == "Secret^Name"
    for path in (result / "run.json", result / "report.html", result.parent / "told.txt"):
        text = path.read_text()
        assert len(text) > 50 and not any(secret in text for secret in SECRETS), path


def test_without_highdicom_a_sentence_takes_the_place_of_the_map(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_maps, "available", lambda: False)
    words = ["--steps", "1", "--samples", "2", "--prior", result.parent / "prior.safetensors", "--quiet", "--no-report"]
    assert ct("reconstruct", result.parent / "scan.h5", "-o", tmp_path / "out", *words) == 0
    assert any("pip install 'diffsuite[dicom]'" in sentence for sentence in record(tmp_path / "out")["warnings"])
    assert not (tmp_path / "out/dicom_maps").exists() and (tmp_path / "out/dicom").is_dir()
