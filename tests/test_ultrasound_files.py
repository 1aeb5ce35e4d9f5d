"""Ultrasound files: every format is read as what it is, and written back with only the picture changed."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ultrasound_files import (
    FRAMES,
    SIDE,
    cine,
    dicom,
    iq,
    pixels_of,
    rf,
    save_dicom,
    ultrasound,
    ultrasound_data,
    write_clarius,
    write_mat,
    write_mha,
    write_npz,
    write_picmus,
    write_uff,
    write_zea,
)

from domains.ultrasound.containers import Layout
from domains.ultrasound.data import SUFFIXES, describe, read_cine, write_cine
from suite.errors import InputError


def files(folder: Path) -> dict[str, tuple[Path, np.ndarray, str]]:
    """Each format with what it must be read as, `(frame, row, column)`, and its domain."""
    lines = iq().transpose(0, 2, 1)
    pair = np.stack([lines.real, lines.imag], -1).astype("<i2")
    np.save(folder / "a.npy", rf())
    return {
        "npz": (write_npz(folder / "a.npz"), cine(), "grey"),
        "npy": (folder / "a.npy", rf(), "rf"),
        "mat": (write_mat(folder / "a.mat"), rf(), "rf"),
        "mha": (write_mha(folder / "a.mha", cine(), "MET_UCHAR", "0.3 0.2 1"), cine(), "grey"),
        "mha rf": (
            write_mha(
                folder / "b.mha", rf().transpose(0, 2, 1).repeat(2, 2), "MET_SHORT", "0.01 0.1 1", compressed=False
            ),
            rf().repeat(2, 1),
            "rf",
        ),
        "clarius env": (write_clarius(folder / "a.raw", cine().transpose(0, 2, 1), 1), cine(), "grey"),
        "clarius rf": (write_clarius(folder / "b.raw", rf().transpose(0, 2, 1), 2), rf(), "rf"),
        "clarius iq": (write_clarius(folder / "c.raw", pair, 4), iq(), "iq"),
        "zea image": (write_zea(folder / "a.h5", "image", cine() / np.float32(4.25) - 60), cine() / 4.25 - 60, "grey"),
        "zea iq": (
            write_zea(folder / "b.h5", "beamformed_data", np.stack([iq().real, iq().imag], -1)),
            iq(),
            "iq",
        ),
        "picmus": (write_picmus(folder / "c.h5"), iq(), "iq"),
        "uff": (write_uff(folder / "a.uff", iq()), iq(), "iq"),
        "uff linear": (write_uff(folder / "b.uff", rf().astype(np.float32), sector=False), rf(), "rf"),
        "uff by rows": (write_uff(folder / "c.uff", iq(), depth_first=False), iq(), "iq"),
        "dicom": (save_dicom(folder / "a.dcm", dicom(cine(), "MONOCHROME2")), cine(), "grey"),
    }


def test_every_format_is_read_and_written_back(tmp_path: Path) -> None:
    for name, (path, data, domain) in files(tmp_path).items():
        found = read_cine(path)
        assert found.domain == domain, name
        np.testing.assert_allclose(found.data, data, rtol=0, atol=1e-3, err_msg=name)
        target = tmp_path / f"back{path.suffix}"
        changed = found.data.copy()
        changed[0, 30:34, 30:34] *= 0.5
        write_cine(found, changed, target)
        again = read_cine(target, key=None if found.kind == "clarius" else found.key)
        assert (again.dtype, again.domain) == (found.dtype, found.domain), name
        np.testing.assert_allclose(again.data, changed, rtol=0, atol=1.0, err_msg=name)
        np.testing.assert_array_equal(again.data[1:], found.data[1:], err_msg=name)
        assert path.stat().st_size > 0


def test_dehaze_round_trips_every_format(tmp_path: Path) -> None:
    """Type, shape and whatever is not the picture survive; nothing gets brighter; the input is not touched."""
    for number, (name, (path, _, domain)) in enumerate(files(tmp_path).items()):
        before, out = path.read_bytes(), tmp_path / f"out{number}"
        words = ("dehaze", path, "-o", out, "--method", "background", "--quiet", "--no-report")
        assert ultrasound(*words) == 0, name
        assert path.read_bytes() == before, name
        (made,) = [p for p in out.glob("dehazed*") if p.suffix == path.suffix and p.name != "dehazed.npz"]
        assert made.suffix == path.suffix, name
        found, again = read_cine(path), read_cine(made)
        assert (again.dtype, again.domain, again.layout) == (found.dtype, domain, found.layout), name
        assert (again.frame_time_ms, again.spacing_mm, again.angles_deg) == (
            found.frame_time_ms,
            found.spacing_mm,
            found.angles_deg,
        ), name
        assert again.data.shape == found.data.shape, name
        brighter = np.abs(again.data - again.black) - np.abs(found.data - found.black)
        assert float(brighter.max()) <= 1e-3 * float(np.abs(found.data).max()) + (
            1 if found.dtype.kind in "iu" else 0
        ), name
        if found.kind == "uff":
            with h5py.File(path) as a, h5py.File(made) as b:
                assert sorted(a) == sorted(b) and (a["b_data/scan/x"][()] == b["b_data/scan/x"][()]).all()


def test_uff_tells_the_sector(tmp_path: Path) -> None:
    found = read_cine(write_uff(tmp_path / "a.uff", iq()))
    assert found.angles_deg == pytest.approx((np.degrees(-0.6), np.degrees(0.6)))
    assert found.apex == pytest.approx(0.1) and found.frame_time_ms == 40
    with h5py.File(tmp_path / "b.uff", "w") as file:
        file.create_group("channel_data").attrs["class"] = "uff.channel_data"
    with pytest.raises(InputError, match="beamform"):
        read_cine(tmp_path / "b.uff")
    path = write_zea(tmp_path / "a.h5", "beamformed_data", np.stack([iq().real, iq().imag], -1))
    with h5py.File(path, "r+") as file:
        file["scan/polar_angles"] = np.linspace(-0.5, 0.5, SIDE)
    assert read_cine(path).angles_deg == pytest.approx((np.degrees(-0.5), np.degrees(0.5)))


def test_what_files_tell_of_time_scale_and_range(tmp_path: Path) -> None:
    made = files(tmp_path)
    assert read_cine(made["npz"][0]).frame_time_ms == 40
    assert read_cine(made["clarius env"][0]).frame_time_ms == 50
    assert read_cine(made["zea iq"][0]).frame_time_ms == pytest.approx(20)
    assert read_cine(made["mha"][0]).spacing_mm == (0.2, 0.3)
    assert read_cine(made["mha rf"][0]).spacing_mm == (0.01, 0.1)  # depth along the rows
    image = read_cine(made["zea image"][0])
    assert (image.white, image.dynamic_range_known) == (0, True)
    assert read_cine(made["npz"][0], key="clean").data.max() < 128
    assert read_cine(made["npz"][0], clean=True).key == "clean"
    with h5py.File(made["zea image"][0]) as file:
        assert file["scan/sound_speed"].attrs["unit"] == "m/s"


def test_other_contents_stay(tmp_path: Path) -> None:
    made = files(tmp_path)
    found = read_cine(made["npz"][0])
    write_cine(found, found.data * 0, tmp_path / "o.npz")
    with np.load(tmp_path / "o.npz") as file:
        assert sorted(file.files) == ["clean", "cluttered", "fps", "note"]
        assert not file["cluttered"].any() and file["clean"].any()
    raw = made["clarius rf"][0].read_bytes()
    found = read_cine(made["clarius rf"][0])
    write_cine(found, found.data, tmp_path / "o.raw")
    assert (tmp_path / "o.raw").read_bytes() == raw


def test_clarius_tar(tmp_path: Path) -> None:
    path = write_clarius(tmp_path / "x_env.raw", cine().transpose(0, 2, 1), 1)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(path, "x_env.raw")
        tar.add(path.with_suffix(".yml"), "x_env.yml")
    found = read_cine(tmp_path / "x.tar")
    np.testing.assert_array_equal(found.data, cine())
    write_cine(found, found.data // 2, tmp_path / "y.tar")
    np.testing.assert_array_equal(read_cine(tmp_path / "y.tar").data, cine() // 2)
    with tarfile.open(tmp_path / "y.tar") as tar:
        assert tar.getnames() == ["x_env.raw", "x_env.yml"]


# --- DICOM --------------------------------------------------------------------------------------------------------------


def colour() -> np.ndarray:
    """A cine in RGB with text above, a white caliper line in the picture, and a moving colour overlay."""
    out = np.repeat(cine()[..., None], 3, -1)
    out[:, 1, 2:20] = 255
    out[:, 40, 20:44] = 255
    for k in range(FRAMES):
        out[k, 44 + k : 48 + k, 28:34] = (200, 30, 10)
    return out


@pytest.mark.parametrize("photometric", ["RGB", "PALETTE COLOR", "MONOCHROME2"])
def test_dicom_output_is_derived_and_changes_the_sector_only(tmp_path: Path, photometric: str) -> None:
    pixels = colour() if photometric == "RGB" else cine()
    path = save_dicom(tmp_path / "a.dcm", dicom(pixels, photometric, region=(8, 4, 56, 60)))
    before = path.read_bytes()
    assert ultrasound("dehaze", path, "--method", "background", "-o", tmp_path / "out", "--quiet") == 0
    old, new = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "out" / "dehazed.dcm")
    assert path.read_bytes() == before
    assert new.SOPInstanceUID != old.SOPInstanceUID and new.SeriesInstanceUID != old.SeriesInstanceUID
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
    assert new.StudyInstanceUID == old.StudyInstanceUID and new.FrameTime == old.FrameTime
    assert list(new.ImageType) == ["DERIVED", "PRIMARY"] and "not for primary diagnosis" in new.DerivationDescription
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert new.SequenceOfUltrasoundRegions == old.SequenceOfUltrasoundRegions
    shown = new.pixel_array
    if photometric == "PALETTE COLOR":
        assert (shown[..., 0] == shown[..., 1]).all()
        shown = shown[..., 0]
    assert (shown != pixels).any()
    outside = np.ones((SIDE, SIDE), bool)
    outside[4:61, 8:57] = False
    np.testing.assert_array_equal(shown[:, outside], pixels[:, outside])
    if photometric == "RGB":
        coloured = np.ptp(pixels.astype(int), axis=-1) > 12
        np.testing.assert_array_equal(shown[coloured], pixels[coloured])
        np.testing.assert_array_equal(shown[:, 40, 20:44], pixels[:, 40, 20:44])
        assert (np.ptp(shown[~coloured].astype(int), axis=-1) == 0).all()


def test_dicom_regions_and_time(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", dicom(cine(), "MONOCHROME2", region=(8, 4, 56, 60)))
    found = read_cine(path)
    assert found.sector is not None and found.sector.sum() == 49 * 57
    assert (found.frame_time_ms, found.spacing_mm) == (40.0, (pytest.approx(0.4), pytest.approx(0.5)))
    path = save_dicom(tmp_path / "b.dcm", dicom(cine(), "MONOCHROME2", region=(8, 4, 560, 60)))
    assert read_cine(path).sector is None
    assert "reach beyond" in describe(path)["warnings"][0]
    assert "A^B" not in str(describe(path))


def test_dicom_output_conforms_where_its_source_does_not(tmp_path: Path) -> None:
    """Private text with tabs is kept byte for byte as of unknown type; of a part that may be paired the side is there, empty."""
    source = save_dicom(tmp_path / "a.dcm", dicom(cine(), "MONOCHROME2", region=(8, 4, 56, 60)))
    dataset = pydicom.dcmread(source)
    dataset.add_new((0x0019, 0x0010), "LO", "MAKER")
    dataset.add_new((0x0019, 0x1001), "UT", "<a>\t<b>")
    dataset.add_new((0x0019, 0x1002), "UT", "two\r\nlines ")
    dataset.save_as(source)
    assert ultrasound("dehaze", source, "-o", tmp_path / "o", "--method", "background", "--quiet", "--no-report") == 0
    written = pydicom.dcmread(tmp_path / "o" / "dehazed.dcm")
    assert written[0x0019, 0x1001].VR == "UN" and written[0x0019, 0x1001].value == b"<a>\t<b> "
    assert written[0x0019, 0x1002].VR == "UT" and written[0x0019, 0x1002].value == "two\r\nlines"
    assert "Laterality" in written and not written.Laterality


def test_real_dicom_cine_is_kept_outside_the_sector(tmp_path: Path) -> None:
    source = ultrasound_data() / "us_single_ge_rgb.dcm"
    assert ultrasound("dehaze", source, "--method", "background", "-o", tmp_path, "--no-report", "--quiet") == 0
    old, new = pixels_of(source), pixels_of(tmp_path / "dehazed.dcm")
    with np.load(tmp_path / "dehazed.npz") as file:
        sector = file["sector"]
    np.testing.assert_array_equal(new[~sector], old[~sector])
    np.testing.assert_array_equal(new[:100], old[:100])  # text
    coloured = np.ptp(old.astype(int), axis=-1) > 12
    np.testing.assert_array_equal(new[coloured], old[coloured])
    checker = shutil.which("dciodvfy")
    if checker:

        def errors(path: Path) -> set[str]:
            said = subprocess.run([checker, str(path)], capture_output=True, check=False).stderr.decode("latin-1")
            return {line for line in said.splitlines() if line.startswith("Error")}

        assert errors(tmp_path / "dehazed.dcm") <= errors(source)


# --- bad input ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "two.npz", one=cine(), other=cine())
    np.save(tmp_path / "nan.npy", np.full((2, 16, 16), np.nan))
    np.save(tmp_path / "flat.npy", np.full((2, 16, 16), 3.0))
    np.save(tmp_path / "small.npy", rf()[:, :4])
    np.save(tmp_path / "vector.npy", np.arange(100.0))
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "a.raw").write_bytes(np.asarray([1, 4, 64, 64, 1], "<i4").tobytes() + b"short")
    (tmp_path / "a.mha").write_bytes(b"NDims = 3\nElementDataFile = LOCAL\n")
    (tmp_path / "a.txt").write_text("hello")
    report = dicom(cine(), "MONOCHROME2")
    report.Modality = "CT"
    save_dicom(tmp_path / "ct.dcm", report)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    for name, said in {
        "two.npz": "name one with --key",
        "nan.npy": "every value is NaN",
        "flat.npy": "every value is the same",
        "small.npy": "too small",
        "vector.npy": "is no cine",
        "empty.dcm": "is empty",
        "a.raw": "its header says",
        "a.mha": "a.mha",
        "a.txt": "of no known kind",
        "ct.dcm": "ultrasound (US) is needed",
        "a.h5": "no zea file",
        "absent.npz": "no such file",
    }.items():
        assert ultrasound("dehaze", tmp_path / name, "--method", "background", "-o", tmp_path / "out") == 2, name
        error = capsys.readouterr().err
        assert said in error and name in error and "Traceback" not in error, error
        assert not (tmp_path / "out").exists()


def test_single_nans_count_as_black(tmp_path: Path) -> None:
    data = cine().astype(np.float32)
    data[1, 30, 30] = np.nan
    np.save(tmp_path / "a.npy", data)
    found = read_cine(tmp_path / "a.npy")
    assert found.data[1, 30, 30] == 0 and "1 value(s) were NaN" in found.warnings[0]
    with pytest.raises(InputError, match="IQ is complex"):
        read_cine(tmp_path / "a.npy", domain="iq")


@given(st.sampled_from([(0, 1, None), (1, 0, None), (0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)]))
def test_layout_round_trip(axes: tuple[int, int, int | None]) -> None:
    layout = Layout(*axes)
    stored = np.arange(24).reshape((4, 6) if axes[2] is None else (2, 3, 4))
    taken = layout.take(stored)
    assert taken.ndim == 3
    np.testing.assert_array_equal(layout.give(taken), stored)


@given(
    st.sampled_from(["a.npz", "a.mat", "a.mha", "a.raw", "a.h5", "a.dcm"]), st.integers(0, 10_000), st.integers(0, 255)
)
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damage"
    if not folder.exists():
        folder.mkdir()
        files(folder)
    raw = bytearray((folder / name).read_bytes())
    raw[place % len(raw)] = value
    broken = folder / f"broken-{name}"
    broken.write_bytes(raw[: len(raw) - place % 3])
    try:
        read_cine(broken)
    except InputError as error:
        assert broken.name in str(error)


def test_suffixes_are_those_of_the_promise() -> None:
    assert {".dcm", ".h5", ".mha", ".mat", ".raw", ".npz", ".npy"} <= set(SUFFIXES)
