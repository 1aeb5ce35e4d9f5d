"""Hyperspectral files: what is written holds the same numbers, types, axes and other content as what was read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io as sio

from domains.hyperspectral.data import READERS, describe, read_cube, write_like, write_new
from domains.hyperspectral.envi import AXES, parse_header
from suite.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def scenes() -> Path:
    """The folder of real cubes, from DIFFSUITE_DATA or beside the checkout; skips where there is none."""
    folder = Path(os.environ.get("DIFFSUITE_DATA", ROOT.parent / "shared" / "data")) / "hyperspectral"
    if not folder.is_dir():
        pytest.skip("no real hyperspectral data here (set DIFFSUITE_DATA)")
    return folder


def numbers(dtype: Any = np.uint16, shape: tuple[int, int, int] = (5, 4, 3)) -> np.ndarray:
    """Distinct numbers `(rows, columns, bands)`."""
    return (np.arange(np.prod(shape)).reshape(shape) * 3 + 1).astype(dtype)


def write_pair(path: Path, data: np.ndarray, interleave: str, order: str = "0", extra: str = "") -> Path:
    """An ENVI pair in the test's own words."""
    code = {"u1": 1, "i2": 2, "i4": 3, "f4": 4, "f8": 5, "u2": 12}[data.dtype.str[1:]]
    axes = {"bsq": (2, 0, 1), "bil": (0, 2, 1), "bip": (0, 1, 2)}[interleave]
    stored = data.transpose(axes).astype(data.dtype.newbyteorder(">" if order == "1" else "<"))
    path.with_suffix(".raw").write_bytes(b"HEAD" + stored.tobytes())
    byte_order = f"byte order = {order}\n" if order else ""
    rows, columns, bands = data.shape
    path.write_text(
        f"ENVI\n; a remark = 3\ndescription = {{\n two lines,\n = here}}\nSamples = {columns}\nlines = {rows}\n"
        f"bands = {bands}\nheader offset = 4\ndata type = {code}\ninterleave = {interleave}\n{byte_order}{extra}",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize("interleave", AXES)
@pytest.mark.parametrize(("dtype", "order"), [("u2", "0"), ("i2", "1"), ("f4", "0"), ("f8", "1")])
def test_envi_comes_back_byte_for_byte(tmp_path: Path, interleave: str, dtype: str, order: str) -> None:
    extra = "wavelength units = Micrometers\nwavelength = {0.4, 0.5,\n 0.6}\nbbl = {1, 0, 1}\nmy own key = {a, b}\n"
    source = write_pair(tmp_path / "scene.hdr", numbers(dtype), interleave, order, extra)
    cube = read_cube(source)
    np.testing.assert_array_equal(cube.data, numbers(dtype))
    assert cube.wavelengths is not None and cube.wavelengths == pytest.approx([400, 500, 600])
    assert cube.good is not None and cube.good.tolist() == [True, False, True]
    write_like(cube, cube.data, tmp_path / "out.hdr")
    assert (tmp_path / "out.raw").read_bytes() == source.with_suffix(".raw").read_bytes()
    assert parse_header((tmp_path / "out.hdr").read_text()) == parse_header(source.read_text())


def test_envi_without_byte_order_is_read_with_a_warning(tmp_path: Path) -> None:
    cube = read_cube(write_pair(tmp_path / "scene.hdr", numbers("u2"), "bil", order=""))
    assert "byte order" in cube.warnings[0]
    np.testing.assert_array_equal(cube.data, numbers("u2"))
    write_like(cube, cube.data, tmp_path / "out.hdr")
    assert parse_header((tmp_path / "out.hdr").read_text())["byte order"] == "0"


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ("bbl = {1, 0}\n", "bad-band list"),
        ("reflectance scale factor = 0\n", "scale factor"),
    ],
)
def test_envi_headers_that_contradict_themselves_are_read_with_a_warning(tmp_path: Path, extra: str, what: str) -> None:
    cube = read_cube(write_pair(tmp_path / "scene.hdr", numbers("u2"), "bsq", extra=extra))
    assert what in cube.warnings[0] and cube.good is None and cube.scale == 1
    write_like(cube, cube.data, tmp_path / "out.hdr")
    assert extra in (tmp_path / "out.hdr").read_text()


def test_envi_lists_that_are_no_lengths_and_values_that_are_none(tmp_path: Path) -> None:
    extra = (
        "wavelength units = Index\nwavelength = {1, 2, 3}\ndata ignore value = 1.0\n"
        'band names = {\n Band 1 (a = b), Band {2}, c}\ncoordinate system string = {PROJCS["x",GEOGCS["y = z"]]}\n'
    )
    source = write_pair(tmp_path / "scene.hdr", numbers("f4"), "bip", extra=extra)
    cube = read_cube(source)
    assert cube.wavelengths is None and np.isnan(cube.values()[0, 0, 0]) and np.isfinite(cube.values()).sum() == 59
    write_like(cube, cube.data, tmp_path / "out.hdr")
    assert (tmp_path / "out.hdr").read_text() == source.read_text()
    source.write_text(source.read_text() + "major frame offsets = {8, 0}\n")
    with pytest.raises(InputError, match="major frame offsets"):
        read_cube(source)


def test_matlab_5_keeps_storage_type_and_other_variables(tmp_path: Path) -> None:
    others = {"map": np.eye(5, 4, dtype=np.uint8), "name": "scene", "list": np.array([1, "a"], dtype=object)}
    sio.savemat(tmp_path / "in.mat", {**others, "cube": numbers(np.int16)}, do_compression=True)
    cube = read_cube(tmp_path / "in.mat")
    write_like(cube, cube.data.astype(float) + 0.4, tmp_path / "out.mat")
    before, after = sio.loadmat(tmp_path / "in.mat"), sio.loadmat(tmp_path / "out.mat")
    assert after["cube"].dtype == before["cube"].dtype
    for name in ("cube", "map", "name"):
        np.testing.assert_array_equal(after[name], before[name])
    assert after["list"].tolist() == before["list"].tolist()
    write_like(cube, cube.data.astype(float) + 1.6, tmp_path / "out.mat")
    np.testing.assert_array_equal(sio.loadmat(tmp_path / "out.mat")["cube"], numbers(np.int16) + 2)


def test_matlab_73_has_reversed_axes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.mat", "w") as file:
        file["cube"] = numbers(np.float32).transpose(2, 1, 0)
        file["wavelengths"] = np.array([[400.0, 500.0, 600.0]])
    cube = read_cube(tmp_path / "in.mat")
    np.testing.assert_array_equal(cube.data, numbers(np.float32))
    write_like(cube, cube.data * 2, tmp_path / "out.mat")
    with h5py.File(tmp_path / "out.mat") as file:
        np.testing.assert_array_equal(file["cube"][()], 2 * numbers(np.float32).transpose(2, 1, 0))
        assert file["wavelengths"].shape == (1, 3)


def emit_file(path: Path) -> Path:
    """EMIT's layout in small."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("reflectance", data=numbers(np.float32), compression="gzip", chunks=(2, 2, 3))
        data.attrs["_FillValue"] = np.float32([-9999])
        data[0, 0] = -9999
        file["sensor_band_parameters/wavelengths"] = np.float32([381, 388, 396])
        file["sensor_band_parameters/wavelengths"].attrs["units"] = "nm"
        file["sensor_band_parameters/fwhm"] = np.float32([8.4, 8.5, 8.5])
        file["sensor_band_parameters/good_wavelengths"] = np.float32([1, 0, 1])
        file["location/lon"] = np.ones((5, 4))
        file["location/glt_x"] = np.arange(42, dtype=np.int32).reshape(6, 7)
        file.attrs["title"] = "EMIT"
    return path


def test_netcdf_in_the_layout_of_emit(tmp_path: Path) -> None:
    cube = read_cube(emit_file(tmp_path / "in.nc"))
    assert cube.key == "reflectance" and cube.nodata == -9999
    assert cube.good is not None and cube.good.tolist() == [True, False, True]
    assert np.isnan(cube.values()[0, 0]).all() and np.isfinite(cube.values()[1:]).all()
    assert cube.wavelengths is not None and cube.wavelengths.tolist() == [381, 388, 396]
    assert cube.fwhm is not None and cube.fwhm == pytest.approx([8.4, 8.5, 8.5])
    write_like(cube, cube.data + 1, tmp_path / "out.nc")
    with h5py.File(tmp_path / "out.nc") as file:
        assert file["location/glt_x"][5, 6] == 41 and file["reflectance"].attrs["_FillValue"] == -9999
        np.testing.assert_array_equal(file["reflectance"][1:], numbers(np.float32)[1:] + 1)
        assert file["location/lon"].shape == (5, 4) and file.attrs["title"] == "EMIT"
        assert file["reflectance"].compression == "gzip"


def test_classic_netcdf_finds_the_band_axis_by_its_name(tmp_path: Path) -> None:
    with sio.netcdf_file(tmp_path / "in.nc", "w") as file:
        for name, size in (("wavelength", 3), ("y", 5), ("x", 4)):
            file.createDimension(name, size)
        file.createVariable("radiance", "f4", ("wavelength", "y", "x"))[:] = numbers(np.float32).transpose(2, 0, 1)
        wave = file.createVariable("wavelength", "f4", ("wavelength",))
        wave[:], wave.units = [0.4, 0.5, 0.6], "um"
    cube = read_cube(tmp_path / "in.nc")
    np.testing.assert_array_equal(cube.data, numbers(np.float32))
    assert cube.wavelengths is not None and cube.wavelengths == pytest.approx([400, 500, 600])
    write_like(cube, cube.data + 1, tmp_path / "out.nc")
    np.testing.assert_array_equal(read_cube(tmp_path / "out.nc").data, numbers(np.float32) + 1)


def test_prisma_joins_and_splits_its_two_cubes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "in.he5", "w") as file:
        fields = file.create_group("HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields")
        fields["VNIR_Cube"] = numbers().transpose(0, 2, 1)
        fields["SWIR_Cube"] = 100 + numbers().transpose(0, 2, 1)
        file.attrs["List_Cw_Vnir"], file.attrs["List_Cw_Swir"] = [600.0, 500.0, 0.0], [1000.0, 1100.0, 1200.0]
        file.attrs["List_Fwhm_Vnir"], file.attrs["List_Fwhm_Swir"] = [10.0] * 3, [11.0] * 3
    cube = read_cube(tmp_path / "in.he5")
    assert cube.wavelengths is not None and cube.wavelengths.tolist() == [500, 600, 1000, 1100, 1200]
    np.testing.assert_array_equal(cube.data[..., 0], numbers()[..., 1])
    write_like(cube, cube.data + 7, tmp_path / "out.he5")
    with h5py.File(tmp_path / "out.he5") as file:
        fields = file["HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"]
        np.testing.assert_array_equal(fields["VNIR_Cube"][:, :2], numbers().transpose(0, 2, 1)[:, :2] + 7)
        np.testing.assert_array_equal(fields["VNIR_Cube"][:, 2], numbers()[..., 2])
        np.testing.assert_array_equal(fields["SWIR_Cube"], 107 + numbers().transpose(0, 2, 1))


def test_geotiff_keeps_reference_and_tags(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    where = rasterio.transform.from_origin(5e5, 5e6, 30, 30)
    with rasterio.open(
        tmp_path / "in.tif", "w", driver="GTiff", height=5, width=4, count=3, dtype="int16", crs="EPSG:32633",
        transform=where, nodata=-32768,
    ) as file:  # fmt: skip
        file.write(numbers(np.int16).transpose(2, 0, 1))
        file.update_tags(station="one")
        for band, wavelength in enumerate((0.4, 0.5, 0.6), 1):
            file.update_tags(band, wavelength=wavelength, wavelength_units="Micrometers", bbl=int(band != 2))
    cube = read_cube(tmp_path / "in.tif")
    assert cube.wavelengths is not None and cube.wavelengths == pytest.approx([400, 500, 600])
    assert cube.good is not None and cube.good.tolist() == [True, False, True] and cube.nodata == -32768
    write_like(cube, cube.data + 1.0, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs.to_epsg() == 32633 and file.transform == where and file.nodata == -32768
        assert file.tags()["station"] == "one" and file.tags(2)["bbl"] == "0" and file.dtypes == ("int16",) * 3
        np.testing.assert_array_equal(file.read(), numbers(np.int16).transpose(2, 0, 1) + 1)


def test_npz_keeps_its_other_arrays_and_new_files_their_bands(tmp_path: Path) -> None:
    mask = np.ones((5, 4), np.uint8)
    mask[0] = 0
    np.savez(tmp_path / "in.npz", data=numbers(np.float32), wavelength_um=np.float32([0.4, 0.5, 0.6]), mask=mask)
    cube = read_cube(tmp_path / "in.npz")
    assert cube.outside is not None and cube.outside[0].all() and not cube.outside[1:].any()
    write_like(cube, cube.data + 1, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert sorted(file.files) == ["data", "mask", "wavelength_um"]
        np.testing.assert_array_equal(file["data"], numbers(np.float32) + 1)
    for suffix in (".hdr", ".mat", ".npz"):
        write_new(cube, cube.values(), tmp_path / f"new{suffix}")
        again = read_cube(tmp_path / f"new{suffix}")
        assert again.wavelengths is not None and again.wavelengths == pytest.approx([400, 500, 600], rel=1e-6)


def test_several_cubes_need_a_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=numbers(), b=numbers())
    with pytest.raises(InputError, match=r"--key: a, b"):
        read_cube(tmp_path / "two.npz")
    assert read_cube(tmp_path / "two.npz", "b").key == "b"


def _spoil(path: Path, what: str) -> None:
    data = numbers(np.float32)
    match what:
        case "empty":
            path.write_bytes(b"")
        case "noise":
            path.write_bytes(bytes(range(256)) * 4)
        case "nan":
            np.save(path, np.full((4, 4, 3), np.nan))
        case "flat":
            np.save(path, data[..., 0])
        case "text":
            np.save(path, np.full((2, 2, 2), "a"))
        case "cut":
            write_pair(path, data.astype("f4"), "bil")
            path.with_suffix(".raw").write_bytes(b"1234")
        case "no lines":
            write_pair(path, data.astype("f4"), "bil")
            path.write_text(path.read_text().replace("lines", "sentences"))
        case "no raw":
            path.write_text("ENVI\nsamples = 1\nlines = 1\nbands = 2\ndata type = 4\n")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *((f"x{suffix}", "empty") for suffix in READERS),
        *((f"x{suffix}", "noise") for suffix in READERS if suffix not in (".tif", ".tiff")),
        ("x.npy", "nan"), ("x.npy", "flat"), ("x.npy", "text"),
        ("x.hdr", "cut"), ("x.hdr", "no lines"), ("x.hdr", "no raw"), ("x.jpg", "noise"), ("absent.npy", "nothing"),
    ],
)  # fmt: skip
def test_bad_files_end_in_one_sentence_that_names_them(tmp_path: Path, name: str, what: str) -> None:
    _spoil(tmp_path / name, what)
    with pytest.raises(InputError) as error:
        read_cube(tmp_path / name)
    assert (tmp_path / name).stem in str(error.value) and "\n" not in str(error.value)


def test_real_files(scenes: Path) -> None:
    facts = {file.name: describe(file) for file in sorted(scenes.iterdir()) if file.suffix in READERS}
    shapes = {name: (f["rows"], f["columns"], f["bands"]) for name, f in facts.items()}
    assert shapes["corn_kernel_vnir.hdr"] == (31, 43, 580) and shapes["aviris_salton_sea_roi.nc"] == (51, 56, 224)
    assert facts["aviris_salton_sea_roi.nc"]["empty_bands"] == 20
    assert facts["casi_muufl_gulfport_sub.mat"]["no_data_pixels"] == pytest.approx(604 / 4488)
    assert facts["rosis_pavia_university_80x50.npz"]["wavelengths_nm"] == pytest.approx([430, 860])
