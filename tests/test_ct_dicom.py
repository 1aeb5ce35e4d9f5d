"""DICOM CT series in."""

from __future__ import annotations

import shutil
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from ct_files import ct_header, phantom, write_ct, write_ct_series
from pydicom.fileset import FileSet

from domains.ct.data import Derivation, headers_from_json, headers_to_json, list_series, read_volume, write_series
from suite.errors import InputError

NOW = datetime(2024, 5, 6, 7, 8, 9)
MADE = Derivation("DIFFSUITE test", "30 views; dds; 20 evaluations", "0.1", model="ct sha256 abc", created=NOW)


@pytest.mark.parametrize(
    "encoding",
    [
        {},
        {"signed": False, "bits": 12},
        {"implicit": True},
        {"RescaleSlope": "2", "RescaleIntercept": "-1000"},
        {"RescaleIntercept": "0"},
        {"suffix": ""},
    ],
    ids=["int16", "uint12", "implicit", "slope2", "intercept0", "no-extension"],
)
def test_series_is_sorted_by_position_and_in_hu(tmp_path: Path, encoding: dict) -> None:
    hu = phantom()
    read = read_volume(write_ct_series(tmp_path / "series", hu, **encoding))
    slope = float(encoding.get("RescaleSlope", 1))
    np.testing.assert_allclose(read.data, hu, atol=slope / 2)
    np.testing.assert_allclose(read.spacing_mm, (0.8, 0.8, 2))
    np.testing.assert_allclose(read.affine @ [0, 0, 0, 1], [11, 23, -50, 1])  # LPS (-11, -23, -50) in RAS
    assert read.orientation == "LPS"
    assert read.warnings == ()
    assert read.headers is not None
    assert [float(h.ImagePositionPatient[2]) for h in read.headers] == [-50, -48, -46, -44, -42]
    assert all("PixelData" not in h for h in read.headers)


def test_slices_option_reads_those_alone(tmp_path: Path) -> None:
    folder = write_ct_series(tmp_path / "series", phantom())
    part = read_volume(folder, slices=slice(1, 3))
    np.testing.assert_array_equal(part.data, phantom()[1:3])
    assert part.affine[2, 3] == -48
    assert part.headers is not None and len(part.headers) == len(part.sources) == 2
    with pytest.raises(InputError, match="not within the 5 slices"):
        read_volume(folder, slices=slice(3, 8))


@pytest.mark.parametrize(("value", "signed"), [(-2000, True), (63536, True), (4095, False)])
def test_padding_becomes_air_with_a_mask(tmp_path: Path, value: int, signed: bool) -> None:
    """-2000; the same written as unsigned by a careless writer; and a range that ends at its limit."""
    hu, outside = phantom()[0], np.zeros((24, 20), bool)
    outside[:4] = True
    padding = -2000 if signed else 0
    path = write_ct(
        tmp_path / "a.dcm", np.maximum(hu, -1023), (0, 0, 0), signed=signed, padding=outside, padding_value=padding
    )
    dataset = pydicom.dcmread(path)
    if value == 63536:
        dataset.add_new("PixelPaddingValue", "US", value)
    dataset.save_as(path)
    read = read_volume(path)
    assert read.valid is not None
    np.testing.assert_array_equal(read.valid[0], ~outside)
    assert (read.data[0][outside] == -1024).all()


def test_padding_range_limit(tmp_path: Path) -> None:
    hu = np.maximum(phantom()[0], -900)
    outside = np.zeros((24, 20), bool)
    outside[:4] = True
    path = write_ct(tmp_path / "a.dcm", hu, (0, 0, 0), padding=outside)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1500)
    pixels = dataset.pixel_array.copy()
    pixels[0, :5] = -1700
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)
    read = read_volume(path)
    assert read.valid is not None
    np.testing.assert_array_equal(read.valid[0], ~outside)


def test_padding_value_amid_tissue_is_ignored(tmp_path: Path) -> None:
    path = write_ct(
        tmp_path / "a.dcm", phantom()[0], (0, 0, 0), padding=np.zeros((24, 20), bool), padding_value=1024 + 40
    )
    dataset = pydicom.dcmread(path)
    assert (dataset.pixel_array == 1064).any()
    read = read_volume(path)
    np.testing.assert_array_equal(read.data[0], phantom()[0])
    assert any("is ignored" in w for w in read.warnings)


def test_prone_patient_is_turned_to_lps_and_back(tmp_path: Path) -> None:
    folder = write_ct_series(
        tmp_path / "prone", phantom(), ImageOrientationPatient=["-1", "0", "0", "0", "-1", "0"], origin=(11, 23)
    )
    read = read_volume(folder)
    np.testing.assert_array_equal(read.data, phantom()[:, ::-1, ::-1])
    assert read.orientation == "RAS"
    written = write_series(read, tmp_path / "out", MADE)
    stored = pydicom.dcmread(written[0])
    np.testing.assert_array_equal(stored.pixel_array, phantom()[0])
    assert [float(v) for v in stored.ImageOrientationPatient] == [-1, 0, 0, 0, -1, 0]
    assert [float(v) for v in stored.ImagePositionPatient] == [11, 23, -50]


def test_tilted_gantry_is_kept_as_a_sheared_stack(tmp_path: Path) -> None:
    tilt = np.radians(18.5)
    cosines = [1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)]
    folder = write_ct_series(
        tmp_path / "tilt", phantom(), ImageOrientationPatient=[f"{v:.9f}" for v in cosines], GantryDetectorTilt="18.5"
    )
    read = read_volume(folder)
    assert any("tilted by 18.5 degrees" in w for w in read.warnings)
    assert read.slice_offsets_mm is None
    np.testing.assert_allclose(read.affine[:3, 2], [0, 0, 2], atol=1e-6)
    again = read_volume(write_series(read, tmp_path / "out", MADE)[0].parent)
    np.testing.assert_array_equal(again.data, read.data)
    np.testing.assert_allclose(again.affine, read.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("heights", "says"),
    [((0, 2, 4, 8, 10), "slices seem to be missing"), ((0, 1.1, 5.3, 12.7, 13.8), "slice distance varies")],
)
def test_irregular_slices_keep_their_positions(tmp_path: Path, heights: tuple[float, ...], says: str) -> None:
    read = read_volume(write_ct_series(tmp_path / "s", phantom(), heights=np.array(heights)))
    assert any(says in w for w in read.warnings)
    assert read.slice_offsets_mm is not None
    np.testing.assert_allclose(read.slice_offsets_mm[:, 2], heights, atol=1e-6)
    files = write_series(read, tmp_path / "out", MADE)
    assert [float(pydicom.dcmread(f).ImagePositionPatient[2]) for f in files] == list(heights)
    assert read_volume(tmp_path / "s", slices=slice(0, 2)).slice_offsets_mm is None  # two slices are always regular


def test_several_series_are_listed_or_chosen(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "in/a", phantom(), SeriesInstanceUID="1.2.3.20", SeriesDescription="SOFT 2mm")
    write_ct_series(tmp_path / "in/b", phantom(3), SeriesInstanceUID="1.2.3.21", SeriesDescription="LUNG 2mm")
    with pytest.raises(InputError, match=r"several series.*1\.2\.3\.20 \(SOFT 2mm, 5 slices\).*1\.2\.3\.21"):
        read_volume(tmp_path / "in")
    assert read_volume(tmp_path / "in", series_uid="1.2.3.21").data.shape[0] == 3
    with pytest.raises(InputError, match="holds no series 9"):
        read_volume(tmp_path / "in", series_uid="9")
    assert [s["slices"] for s in list_series(tmp_path / "in")] == [5, 3]


def test_localizers_reformats_and_foreign_files_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    folder = write_ct_series(tmp_path / "in", phantom())
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_ct(folder / "scout.dcm", phantom(1, 9, 9)[0], (0, 0, 0), number=90, ImageType=scout)
    write_ct(
        folder / "mpr.dcm", phantom(1, 9, 9)[0], (0, 0, 0), number=91, SeriesInstanceUID="1.2.3.77",
        ImageType=["DERIVED", "SECONDARY", "REFORMATTED"], ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"],
    )  # fmt: skip
    write_ct(folder / "pet.dcm", phantom(1)[0], (0, 0, 0), number=92, Modality="PT", RescaleType=None)
    (folder / "README.txt").write_text("about")
    (folder / "broken.dcm").touch()
    shutil.copy(folder / "IM0002.dcm", folder / "copy.dcm")
    read = read_volume(folder)
    np.testing.assert_array_equal(read.data, phantom())
    told = " ".join(read.warnings)
    for words in ("1 localizer(s)", "1 derived reformat(s)", "1 file(s) left out: PT", "README.txt", "repeat another"):
        assert words in told


def test_dicomdir_stands_for_its_folder(tmp_path: Path) -> None:
    fileset = FileSet()
    for path in sorted(write_ct_series(tmp_path / "in", phantom()).iterdir()):
        fileset.add(path)
    fileset.write(tmp_path / "media")
    assert not list((tmp_path / "media").rglob("*.dcm"))
    for path in (tmp_path / "media", tmp_path / "media/DICOMDIR"):
        read = read_volume(path)
        np.testing.assert_array_equal(read.data, phantom())
        assert read.warnings == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"Modality": "MR", "RescaleType": None}, "1 MR object"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME2 image is needed"),
        ({"RescaleIntercept": None}, "lacks RescaleIntercept"),
        ({"RescaleSlope": "0"}, "RescaleSlope 0"),
        ({"RescaleType": "US"}, "values in HU"),
        ({"PixelSpacing": None}, "lacks PixelSpacing"),
        ({"PixelSpacing": ["0", "0"]}, "no usable geometry"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, "not two perpendicular"),
        ({"ImageOrientationPatient": ["1", "0", "0", "0", "0", "-1"]}, "axial slices are needed"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "only localizer"),
        ({"NumberOfFrames": "4"}, "multi-frame"),
    ],
)
def test_what_cannot_be_read_right_is_refused(tmp_path: Path, changes: dict, says: str) -> None:
    slope_free = {k: v for k, v in changes.items() if k != "RescaleSlope"}
    path = write_ct(tmp_path / "a.dcm", phantom()[0], (0, 0, 0), **slope_free)
    if "RescaleSlope" in changes:
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope = changes["RescaleSlope"]
        dataset.save_as(path)
    with pytest.raises(InputError, match=says):
        read_volume(path)


def test_two_images_at_one_position_are_refused(tmp_path: Path) -> None:
    folder = write_ct_series(tmp_path / "in", phantom())
    write_ct(folder / "lung.dcm", phantom()[2], (-11, -23, -46), number=50, ConvolutionKernel="LUNG")
    with pytest.raises(InputError, match="same position"):
        read_volume(folder)


def test_mixed_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_ct_series(tmp_path / "in", phantom())
    write_ct(folder / "other.dcm", phantom(1, 30, 30)[0], (0, 0, 99), number=50)
    with pytest.raises(InputError, match="mixes image sizes"):
        read_volume(folder)


def test_an_odd_element_does_not_cost_the_scan(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.dcm", phantom()[0], (0, 0, 0), AcquisitionNumber="12")
    raw = path.read_bytes()
    assert raw.count(b"IS\x02\x0012") == 1
    path.write_bytes(raw.replace(b"IS\x02\x0012", b"IS\x02\x001A"))
    read = read_volume(path)
    np.testing.assert_array_equal(read.data[0], phantom()[0])
    assert any("AcquisitionNumber" in w for w in read.warnings)


def test_compression_nothing_decodes_is_said(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.dcm", phantom()[0], (0, 0, 0))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7junk"])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"a\.dcm.*(compressed as JPEG-LS|cannot be decoded)"):
        read_volume(path)


def test_run_length_encoding_is_read(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.dcm", phantom()[0], (0, 0, 0))
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(path).data[0], phantom()[0])


def test_damaged_dicom_raises_input_error_or_reads(tmp_path: Path) -> None:
    good = write_ct(tmp_path / "a.dcm", phantom()[0], (0, 0, 0), implicit=True).read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for trial in range(150):
        bad = bytearray(good)
        if trial % 2:
            bad = bad[: int(rng.integers(1, len(bad)))]
        else:
            for place in rng.integers(0, len(bad) - 960, 5):
                bad[place] = int(rng.integers(256))
        (tmp_path / "a.dcm").write_bytes(bytes(bad))
        try:
            assert np.isfinite(read_volume(tmp_path / "a.dcm").data).all()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused >= 75


def test_ct_slice_inside_pydicom() -> None:
    read = read_volume(pydicom.data.get_testdata_file("CT_small.dcm"))
    assert read.data.shape == (1, 128, 128)
    assert (read.data.min(), read.data.max()) == (-896, 1167)
    np.testing.assert_allclose(read.spacing_mm, (0.661468, 0.661468, 5))


def test_headers_travel_as_json() -> None:
    headers = [ct_header(SOPInstanceUID=f"1.2.{k}", SeriesDescription="Ünï") for k in range(3)]
    assert list(headers_from_json(headers_to_json(headers))) == headers
    for bad in ("", "3", "[1]", "{", '[{"zz": 1}]'):
        with pytest.raises(InputError):
            headers_from_json(bad)


def test_real_abdomen_with_padding(ct_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ct_data / "abdomen_crlm1004_dicom.zip") as archive:
        archive.extractall(tmp_path)
    read = read_volume(tmp_path / "CRLM-CT-1004")
    assert read.data.shape == (41, 512, 512)
    assert read.warnings == ()
    np.testing.assert_allclose(read.spacing_mm, (0.796875, 0.796875, 5))
    assert read.valid is not None
    corners = ~read.valid[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.all()
    assert 0.21 < 1 - read.valid.mean() < 1 - np.pi / 4 + 0.01  # all outside the circle that touches the sides
    assert read.data.min() == -1024


def test_real_mixed_slices(ct_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ct_data / "mixed_nysbu_slices_dicom.zip") as archive:
        archive.extractall(tmp_path)
    with pytest.raises(InputError, match="several series"):
        read_volume(tmp_path / "NYSBU")
    files = sorted((tmp_path / "NYSBU").iterdir())
    assert len(files) == 12
    for file in files:
        read = read_volume(file)
        assert read.data.shape == (1, 512, 512)
        assert read.valid is not None and 0.7 < read.valid.mean() < 0.79  # Toshiba has no PixelPaddingValue
        body = read.data[read.valid]
        assert -1500 < body.min() < -900
        assert 5 < np.median(body[(body > -50) & (body < 150)]) < 60  # soft tissue: the rescale is right
