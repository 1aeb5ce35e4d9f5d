"""Volumes in single files, the containers, and the dispatch by file kind."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ct_files import disc_sinogram, phantom, write_ct_series, write_exchange, write_htc
from hypothesis import given
from hypothesis import strategies as st

from domains.ct.containers import Volume, from_lps, to_lps
from domains.ct.data import describe, read_scan, read_volume, write_mha, write_nifti
from suite.errors import InputError

ORIENTATIONS = [
    "".join(signs) for order in itertools.permutations(("RL", "AP", "SI")) for signs in itertools.product(*order)
]


def volume(orientation: str = "LPS", **changes: object) -> Volume:
    affine = np.array([[-0.7, 0, 0, 31.0], [0, -0.9, 0, -12.5], [0, 0, 2.5, -400.0], [0, 0, 0, 1]])
    fields: dict = {"data": phantom().astype(np.float32), "affine": affine, "orientation": orientation}
    return Volume(**{**fields, **changes})


def world_of(data: np.ndarray, affine: np.ndarray, value: float) -> np.ndarray:
    """Where the only voxel with `value` lies, in mm."""
    z, y, x = np.argwhere(data == value)[0]
    return affine[:3] @ [x, y, z, 1]


@given(orientation=st.sampled_from(ORIENTATIONS), seed=st.integers(0, 2**31), shape=st.tuples(*[st.integers(1, 6)] * 3))
def test_every_voxel_keeps_its_place_in_the_patient(orientation: str, seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    data = rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    axes = nib.orientations.axcodes2ornt(tuple(orientation))
    affine = np.eye(4)
    affine[:3, :3] = 0
    for voxel_axis, (world_axis, sign) in enumerate(axes):
        affine[int(world_axis), voxel_axis] = sign * rng.uniform(0.5, 3)
    affine[:3, 3] = rng.normal(size=3) * 100

    lps, lps_affine, codes = to_lps(data, affine)
    assert codes == orientation
    assert nib.orientations.aff2axcodes(lps_affine) == ("L", "P", "S")
    for value in (0.0, float(data.size - 1)):
        np.testing.assert_allclose(world_of(lps, lps_affine, value), world_of(data, affine, value), atol=1e-9)
    back, back_affine = from_lps(lps, lps_affine, codes)
    np.testing.assert_array_equal(back, data)
    np.testing.assert_allclose(back_affine, affine, atol=1e-9)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "ASR", "PIL"])
def test_a_file_returns_to_the_voxel_order_it_came_from(tmp_path: Path, suffix: str, orientation: str) -> None:
    write = write_mha if suffix == ".mha" else write_nifti
    source = volume(orientation)
    first = write(source, tmp_path / f"a{suffix}")
    read = read_volume(first)
    assert read.orientation == orientation
    np.testing.assert_array_equal(read.data, source.data)
    np.testing.assert_allclose(read.affine, source.affine, atol=1e-5)
    second = write(read, tmp_path / f"b{suffix}")
    assert first.read_bytes() == second.read_bytes()
    if suffix != ".mha":
        image = nib.load(first)
        assert nib.orientations.aff2axcodes(image.affine) == tuple(orientation)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_nifti_values_are_hu_for_others_too(tmp_path: Path, dtype: type) -> None:
    source = volume(data=phantom().astype(np.float32) + np.float32(0.4))
    image = nib.load(write_nifti(source, tmp_path / "v.nii.gz", dtype=dtype))
    assert image.get_data_dtype() == dtype
    expected = np.rint(source.data) if dtype is np.int16 else source.data
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected.transpose(2, 1, 0))


def test_nifti_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    hu = phantom()
    image = nib.Nifti1Image((hu + 1024).astype(np.int16).transpose(2, 1, 0), np.diag([-1.0, -1, 2, 1]))
    image.header.set_slope_inter(1, -1024)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "v.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "v.nii").data, hu, atol=0.6)


def test_row_zero_is_anterior_and_column_zero_is_right(tmp_path: Path) -> None:
    data = np.full((2, 4, 5), -1000.0, np.float32)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])  # RAS: the last y index is anterior, the first x index the patient's left
    data[1, 3, 0] = 500
    image = nib.Nifti1Image(data.transpose(2, 1, 0), affine)
    nib.save(image, tmp_path / "ras.nii")
    read = read_volume(tmp_path / "ras.nii")
    assert read.data[1, 0, 4] == 500  # top row, last column


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_metaimage_of_other_writers(tmp_path: Path, big_endian: bool, separate: bool) -> None:
    hu = phantom().astype(">i2" if big_endian else "<i2")
    lines = [
        "ObjectType = Image", "NDims = 3", f"BinaryDataByteOrderMSB = {big_endian}",
        "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 10 20 30", "ElementSpacing = 0.5 0.6 2",
        "DimSize = 20 24 5", "ElementType = MET_SHORT",
        f"ElementDataFile = {'v.raw' if separate else 'LOCAL'}",
    ]  # fmt: skip
    header = ("\n".join(lines) + "\n").encode()
    if separate:
        (tmp_path / "v.raw").write_bytes(hu.tobytes())
        (tmp_path / "v.mhd").write_bytes(header)
    else:
        (tmp_path / "v.mhd").write_bytes(header + hu.tobytes())
    read = read_volume(tmp_path / "v.mhd")
    np.testing.assert_array_equal(read.data, phantom())
    np.testing.assert_allclose(read.spacing_mm, (0.5, 0.6, 2))
    np.testing.assert_allclose(read.affine[:3, 3], (-10, -20, 30))


def test_a_unit_other_than_hu_survives_both_formats(tmp_path: Path) -> None:
    mu = volume(data=np.linspace(0, 0.03, 2400, dtype=np.float32).reshape(5, 24, 20), unit="1/mm")
    for path in (write_nifti(mu, tmp_path / "v.nii.gz"), write_mha(mu, tmp_path / "v.mha")):
        assert read_volume(path).unit == "1/mm"


def test_slices_keep_their_place(tmp_path: Path) -> None:
    path = write_nifti(volume(), tmp_path / "v.nii.gz")
    whole, part = read_volume(path), read_volume(path, slices=slice(1, 4))
    np.testing.assert_array_equal(part.data, whole.data[1:4])
    np.testing.assert_allclose(part.affine @ [0, 0, 0, 1], whole.affine @ [0, 0, 1, 1])
    for bad in (slice(3, 9), slice(4, 4), slice(7, None)):
        with pytest.raises(InputError, match=r"v\.nii\.gz.*not within the 5 slices"):
            read_volume(path, slices=bad)


def test_irregular_stacks_are_refused_by_formats_that_cannot_hold_them(tmp_path: Path) -> None:
    stack = volume().with_offsets(np.array([[0, 0, h] for h in (0, 1, 4, 5, 9.0)]))
    assert stack.slice_offsets_mm is not None
    assert volume().with_offsets(np.array([[0, 0, 2.5 * k] for k in range(5)])).slice_offsets_mm is None
    for write, name in ((write_nifti, "v.nii"), (write_mha, "v.mha")):
        with pytest.raises(InputError, match="varying slice distance"):
            write(stack, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_pixel_size_refuses_oblong_pixels() -> None:
    with pytest.raises(InputError, match=r"0\.7 x 0\.9"):
        _ = volume().pixel_size_mm
    assert volume(affine=np.diag([-0.7, -0.7, 2, 1])).pixel_size_mm == pytest.approx(0.7)


def save_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1, 2, 1]) if affine is None else affine), path)
    return path


def test_single_nan_is_repaired_and_said(tmp_path: Path) -> None:
    data = phantom().astype(np.float32)
    data[2, 3, 4] = np.nan
    read = read_volume(save_nifti(tmp_path / "v.nii", data.transpose(2, 1, 0)))
    assert np.isfinite(read.data).all()
    assert read.data[2, 3, 4] in data[2, 2:5, 3:6]
    assert any("1 NaN" in w for w in read.warnings)


def test_nan_outside_the_circle_is_padding(tmp_path: Path) -> None:
    data = phantom().astype(np.float32)
    data[:, :4] = np.nan
    read = read_volume(save_nifti(tmp_path / "v.nii", data.transpose(2, 1, 0)))
    assert read.valid is not None
    np.testing.assert_array_equal(read.valid, np.isfinite(data))
    assert (read.data[~read.valid] == -1024).all()


def test_a_common_value_below_air_is_padding(tmp_path: Path) -> None:
    data = phantom().astype(np.float32)
    data[:, :4] = -3024
    data[0, 10, 10] = -1100  # a lone streak is no padding
    read = read_volume(save_nifti(tmp_path / "v.nii", data.transpose(2, 1, 0)))
    assert read.valid is not None
    np.testing.assert_array_equal(read.valid, data != -3024)
    assert read.data.min() == -1100


HU = phantom().astype(np.float32).transpose(2, 1, 0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (np.full((4, 4, 4), np.nan, np.float32), "every value is NaN"),
        (np.zeros((4, 4, 4), np.float32), "cannot be HU"),
        (np.random.default_rng(0).uniform(size=(4, 4, 4)).astype(np.float32), "cannot be HU"),
        (HU * 1000, "cannot be HU"),
        (np.stack([HU, HU], -1), "one 3D volume"),
        (HU.astype(np.complex64), "real numbers"),
        (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "real numbers"),
    ],
    ids=["nan", "constant", "unit-range", "huge", "4d", "complex", "rgb"],
)
def test_nifti_that_is_no_ct_volume_is_refused(tmp_path: Path, data: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=f"v.nii.*{says}"):
        read_volume(save_nifti(tmp_path / "v.nii", data))


def test_values_without_air_are_warned_of(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 4095, (20, 20, 20)).astype(np.int16)
    assert any("may not be Hounsfield" in w for w in read_volume(save_nifti(tmp_path / "v.nii", data)).warnings)


def test_nifti_without_orientation_is_warned_of(tmp_path: Path) -> None:
    image = nib.Nifti1Image(HU, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, tmp_path / "v.nii")
    assert any("orientation is a guess" in w for w in read_volume(tmp_path / "v.nii").warnings)


def damaged(good: bytes, seed: int) -> bytes:
    """Truncated anywhere, or with a few random bytes."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        return good[: int(rng.integers(1, len(good)))]
    bad = bytearray(good)
    for place in rng.integers(0, min(len(bad), 600), 4):
        bad[place] = int(rng.integers(256))
    return bytes(bad)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.mha"])
def test_damaged_volumes_raise_input_error_or_read(tmp_path: Path, name: str) -> None:
    write = write_mha if name.endswith("mha") else write_nifti
    good = write(volume(), tmp_path / name).read_bytes()
    refused = 0
    for seed in range(120):
        (tmp_path / name).write_bytes(damaged(good, seed))
        try:
            assert np.isfinite(read_volume(tmp_path / name).data).all()
        except InputError as error:
            refused += 1
            assert name in str(error)
            assert "\n" not in str(error)
    assert refused >= 55  # every truncation at least, but for the last bytes of a gzip trailer


def test_what_is_missing_empty_or_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"hello"))
    scan = write_exchange(
        tmp_path / "scan.h5", {"data": np.random.default_rng(0).random((4, 1, 8)), "theta": np.arange(4.0)}
    )
    image = write_nifti(volume(), tmp_path / "v.nii.gz")
    for path, says in (
        (tmp_path / "nothing.nii", "no such file"),
        (tmp_path / "empty.nii.gz", "empty"),
        (tmp_path / "folder", "folder is empty"),
        (tmp_path / "note.txt", "no known kind"),
        (tmp_path / "text.nii.gz", "not a readable NIfTI"),
    ):
        for read in (read_volume, read_scan, describe):
            if path.name == "text.nii.gz" and read is read_scan:
                continue
            with pytest.raises(InputError, match=says) as caught:
                read(path)
            assert path.name in str(caught.value)
    with pytest.raises(InputError, match="is a scan"):
        read_volume(scan)
    with pytest.raises(InputError, match="is an image"):
        read_scan(image)
    with pytest.raises(InputError, match="--key"):
        read_volume(image, key="x")


def test_describe_is_json_and_names_no_patient(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "dicom", phantom(), SeriesDescription="ABDOMEN 2mm")
    write_nifti(volume(), tmp_path / "v.nii.gz")
    sinogram = disc_sinogram(np.arange(0, 360, 10.0), 40, 0.2, 19.5, source=410.66, detector=143.08)
    write_htc(tmp_path / "h.mat", sinogram, np.arange(0, 360, 10.0))
    for name, kind in (("dicom", "volume"), ("v.nii.gz", "volume"), ("h.mat", "scan")):
        told = describe(tmp_path / name)
        text = json.dumps(told)
        assert told["kind"] == kind
        assert "secret" not in text.lower()
        assert "1950" not in text
    assert describe(tmp_path / "dicom")["shape"] == [5, 24, 20]
    assert describe(tmp_path / "dicom")["series"][0]["slices"] == 5
    assert describe(tmp_path / "h.mat")["views"] == 36


def test_real_nifti_in_both_orders(ct_data: Path, tmp_path: Path) -> None:
    torso = read_volume(ct_data / "torso_totalseg_example_3mm.nii.gz")
    assert torso.orientation == "RAS"
    source = nib.load(ct_data / "torso_totalseg_example_3mm.nii.gz")
    image = nib.load(write_nifti(torso, tmp_path / "t.nii.gz"))
    np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)
    np.testing.assert_array_equal(image.get_fdata(), source.get_fdata())
    chest = read_volume(ct_data / "chest_lungdx_a0001_softB_256.nii.gz", slices=slice(30, 32))
    assert chest.orientation == "LPS"
    for stack in (torso, chest):  # the spine lies behind: bone sits lower in the image than the body does
        rows = np.arange(stack.data.shape[1])[:, None]
        bone, body = ((stack.data > limit).sum(axis=0) for limit in (300, -300))
        assert (rows * bone).sum() / bone.sum() > (rows * body).sum() / body.sum() + 5
