"""DICOM CT series out: what a derived series must hold, and that an independent validator agrees."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from ct_files import ct_header, phantom, write_ct_series

from domains.ct.containers import Volume
from domains.ct.data import Derivation, read_volume, write_series
from suite.errors import InputError

NOW = datetime(2024, 5, 6, 7, 8, 9)
MADE = Derivation("DIFFSUITE test", "30 views; dds; 20 evaluations", "0.1", model="ct sha256 abc", created=NOW)


# PS3.3 A.3.3 and its modules: what must be there with a value, and what must be there at least empty
TYPE_1 = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Modality", "SeriesInstanceUID", "FrameOfReferenceUID",
    "ImageType", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SamplesPerPixel",
    "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelData", "RescaleIntercept", "RescaleSlope", "RescaleType", "PatientPosition",
]  # fmt: skip
TYPE_2 = [
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "SeriesNumber", "PositionReferenceIndicator",
    "Manufacturer", "InstanceNumber", "ContentDate", "ContentTime", "SliceThickness", "KVP", "AcquisitionNumber",
]  # fmt: skip


def bare_volume() -> Volume:
    affine = np.array([[-0.7, 0, 0, 31.0], [0, -0.7, 0, -12.5], [0, 0, 2.5, -400.0], [0, 0, 0, 1]])
    return Volume(phantom().astype(np.float32), affine)


def source_volume(tmp_path: Path) -> Volume:
    hu = phantom()
    hu[:, :3] = -1024
    padding = np.zeros((24, 20), bool)
    padding[:3] = True
    return read_volume(
        write_ct_series(
            tmp_path / "source", hu, padding=padding, SmallestImagePixelValue=3, LargestImagePixelValue=9,
            PatientIdentityRemoved="YES", DeidentificationMethod="by hand", CTDIvol=12.5, ReconstructionDiameter="16",
            SeriesDescription="SOURCE",
        )
    )  # fmt: skip


@pytest.mark.parametrize("bare", [True, False])
def test_required_attributes_of_the_ct_image_iod(tmp_path: Path, bare: bool) -> None:
    volume = bare_volume() if bare else source_volume(tmp_path)
    for path in write_series(volume, tmp_path / "out", MADE):
        dataset = pydicom.dcmread(path)
        for keyword in TYPE_1:
            assert keyword in dataset and dataset[keyword].value not in (None, ""), keyword
        for keyword in TYPE_2:
            assert keyword in dataset, keyword
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert pydicom.uid.UID(dataset.SOPInstanceUID).is_valid
        assert len(dataset.SOPInstanceUID) <= 64


def test_derived_series_says_what_it_is(tmp_path: Path) -> None:
    source = source_volume(tmp_path)
    assert source.headers is not None
    files = write_series(source, tmp_path / "out", MADE)
    assert [f.name for f in files] == ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm", "0005.dcm"]
    written = [pydicom.dcmread(f) for f in files]
    assert len({d.SOPInstanceUID for d in written}) == 5
    assert {d.SeriesInstanceUID for d in written}.isdisjoint({h.SeriesInstanceUID for h in source.headers})
    for dataset, header, k in zip(written, source.headers, range(5), strict=True):
        assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "DIFFSUITE"]
        for keyword in (
            "PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "ImagePositionPatient",
            "ImageOrientationPatient", "PixelSpacing", "KVP", "ConvolutionKernel", "WindowCenter", "CTDIvol",
            "PatientIdentityRemoved", "DeidentificationMethod", "ReconstructionDiameter",
        ):  # fmt: skip
            assert dataset[keyword] == header[keyword], keyword
        assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == header.SOPInstanceUID
        assert dataset.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        equipment = dataset.ContributingEquipmentSequence[0]
        assert (equipment.ManufacturerModelName, equipment.SoftwareVersions) == ("diffsuite", "0.1")
        assert "sha256 abc" in equipment.ContributionDescription
        assert dataset.DerivationDescription == MADE.text
        assert dataset.SeriesDescription == "DIFFSUITE test"
        assert dataset.BurnedInAnnotation == "NO"
        assert (dataset.SeriesDate, dataset.InstanceCreationDate) == ("20240506", "20240506")
        assert dataset.ContentTime == "070809"
        assert "SmallestImagePixelValue" not in dataset and "LargestImagePixelValue" not in dataset
        assert (dataset.InstanceNumber, dataset.SeriesNumber) == (k + 1, 1004)
        assert (dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelRepresentation) == (1, 0, 1)


def test_simulated_dose_is_not_claimed_as_delivered(tmp_path: Path) -> None:
    made = Derivation("d", "t", "0.1", simulated_dose=True)
    dataset = pydicom.dcmread(write_series(source_volume(tmp_path), tmp_path / "out", made)[0])
    for keyword in ("CTDIvol", "Exposure", "XRayTubeCurrent"):
        assert keyword not in dataset
    assert dataset.KVP == 120


def test_series_reads_back_with_padding(tmp_path: Path) -> None:
    source = source_volume(tmp_path)
    write_series(source, tmp_path / "out", MADE)
    again = read_volume(tmp_path / "out")
    np.testing.assert_array_equal(again.data, source.data)
    assert again.valid is not None and source.valid is not None
    np.testing.assert_array_equal(again.valid, source.valid)
    np.testing.assert_allclose(again.affine, source.affine)
    assert again.warnings == ()


def test_values_are_rounded_and_clipped_to_int16(tmp_path: Path) -> None:
    volume = bare_volume()
    volume.data[0, 0, :4] = (1e6, -1e6, 12.4, -12.6)
    files = write_series(volume, tmp_path / "out", MADE)
    assert pydicom.dcmread(files[0]).pixel_array[0, :4].tolist() == [32767, -32768, 12, -13]


def test_resampled_grid_gets_its_own_geometry(tmp_path: Path) -> None:
    source = source_volume(tmp_path)
    affine = source.affine.copy()
    affine[:3, :2] *= 2
    affine[:3, 3] += source.affine[:3, :2].sum(axis=1) / 2
    small = Volume(source.data[:, ::2, ::2], affine, headers=source.headers)
    dataset = pydicom.dcmread(write_series(small, tmp_path / "out", MADE)[0])
    assert (dataset.Rows, dataset.Columns) == (12, 10)
    assert [float(v) for v in dataset.PixelSpacing] == [1.6, 1.6]
    np.testing.assert_allclose([float(v) for v in dataset.ImagePositionPatient], (-10.6, -22.6, -50))
    assert "ReconstructionDiameter" not in dataset
    assert dataset.FrameOfReferenceUID == source.headers[0].FrameOfReferenceUID  # type: ignore[index]


def test_a_rerun_gives_the_same_files_and_another_result_other_uids(tmp_path: Path) -> None:
    source = source_volume(tmp_path)
    first = [f.read_bytes() for f in write_series(source, tmp_path / "a", MADE)]
    second = [f.read_bytes() for f in write_series(source, tmp_path / "b", MADE)]
    assert first == second
    late = Derivation(MADE.series_description, MADE.text, MADE.version, MADE.model)
    uid = pydicom.dcmread(tmp_path / "a/0001.dcm").SOPInstanceUID
    assert pydicom.dcmread(write_series(source, tmp_path / "c", late)[0]).SOPInstanceUID == uid
    source.data[2, 10, 10] += 1
    assert pydicom.dcmread(write_series(source, tmp_path / "d", MADE)[0]).SOPInstanceUID != uid


def test_the_folder_is_replaced_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    write_series(bare_volume(), tmp_path / "out", MADE)
    two = Volume(bare_volume().data[:2], bare_volume().affine)
    write_series(two, tmp_path / "out", MADE)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["0001.dcm", "0002.dcm", "out"]
    with pytest.raises(InputError, match="do not match"):
        write_series(Volume(two.data, two.affine, headers=(ct_header(),)), tmp_path / "bad", MADE)
    with pytest.raises(InputError, match="1/mm"):
        write_series(Volume(two.data, two.affine, unit="1/mm"), tmp_path / "bad", MADE)
    assert not (tmp_path / "bad").exists()


def complaints(path: Path) -> set[str]:
    """Error lines of dciodvfy, the independent validator of dicom3tools."""
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    return {line for line in told.splitlines() if line.startswith("Error")}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("source", ["bare", "own", "pydicom"])
def test_an_independent_validator_finds_no_new_error(tmp_path: Path, source: str) -> None:
    if source == "bare":
        volume, old = bare_volume(), set()
    elif source == "own":
        volume = source_volume(tmp_path)
        old = complaints(volume.sources[0])
    else:
        path = Path(str(pydicom.data.get_testdata_file("CT_small.dcm")))
        volume, old = read_volume(path), complaints(path)
    for path in write_series(volume, tmp_path / "out", MADE):
        assert complaints(path) <= old


def test_real_series_keeps_its_validity(ct_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ct_data / "abdomen_crlm1004_dicom.zip") as archive:
        archive.extractall(tmp_path)
    read = read_volume(tmp_path / "CRLM-CT-1004", slices=slice(10, 12))
    for path in write_series(read, tmp_path / "out", MADE):
        if shutil.which("dciodvfy"):
            assert complaints(path) <= complaints(read.sources[0])
    again = read_volume(tmp_path / "out")
    np.testing.assert_array_equal(again.data, read.data)
    np.testing.assert_array_equal(again.valid, read.valid)
