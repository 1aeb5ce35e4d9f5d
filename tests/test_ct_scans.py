"""Measured scans: Data Exchange, NXtomo, FIPS/HTC2022 MATLAB files, DICOM-CT-PD."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from ct_files import (
    ct_header,
    disc_sinogram,
    write_ct_pd,
    write_exchange,
    write_htc,
    write_htc_v73,
    write_nxtomo,
)

from domains.ct.containers import Scan
from domains.ct.data import estimate_center_column, headers_from_json, headers_to_json, read_scan, write_scan
from suite.errors import InputError
from suite.mat5 import read_mat5

THETA = np.arange(0, 180, 7.5)
LINES = np.stack([disc_sinogram(THETA, 48, 1.0, 23.0, mu=m) for m in (0.02, 0.05)], axis=1).astype(np.float32)


def counted(lines: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Raw counts with an uneven open beam and a dark level, exact but for float32."""
    rng = np.random.default_rng(seed)
    open_beam = rng.uniform(20000, 30000, lines.shape[1:])
    dark = rng.uniform(90, 110, lines.shape[1:])
    white = np.stack([open_beam + dark - 50, open_beam + dark + 50])
    return {"data": open_beam * np.exp(-lines) + dark, "data_white": white, "data_dark": np.stack([dark] * 3)}


# --- Data Exchange ---------------------------------------------------------------------------------------------------


def test_counts_become_line_integrals(tmp_path: Path) -> None:
    arrays = counted(LINES)
    scan = read_scan(write_exchange(tmp_path / "s.h5", {**arrays, "theta": THETA}))
    np.testing.assert_allclose(scan.line_integrals, LINES, atol=1e-5)
    np.testing.assert_array_equal(scan.theta_deg, THETA)
    assert scan.counts is not None and scan.white is not None and scan.dark is not None
    np.testing.assert_allclose(scan.counts, arrays["data"], rtol=1e-6)
    np.testing.assert_allclose(scan.white, arrays["data_white"].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scan.dark, arrays["data_dark"][0], rtol=1e-6)
    assert (scan.geometry, scan.pixel_size_mm, scan.center_column, scan.photons) == ("parallel", None, None, None)
    assert scan.warnings == ()


def test_without_white_the_data_are_line_integrals(tmp_path: Path) -> None:
    scan = read_scan(write_exchange(tmp_path / "s.h5", {"data": LINES, "theta": THETA}))
    np.testing.assert_array_equal(scan.line_integrals, LINES)
    assert scan.counts is None


FULL = Scan(
    LINES, THETA, geometry="fan", detector="curved", pixel_size_mm=0.8, detector_pitch_mm=1.2, source_origin_mm=500.0,
    origin_detector_mm=450.0, center_column=23.25, photons=1e5, electronic_sigma=0.0, mu_water_per_mm=0.0192,
    image_size=(40, 40), affine=np.array([[-0.8, 0, 0, 3], [0, -0.8, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]]),
    dicom=headers_to_json([ct_header(), ct_header()]),
)  # fmt: skip


@pytest.mark.parametrize("with_counts", [False, True])
def test_scan_round_trip(tmp_path: Path, with_counts: bool) -> None:
    scan = FULL
    if with_counts:
        arrays = counted(LINES)
        white, dark = arrays["data_white"].mean(axis=0), arrays["data_dark"][0]
        scan = replace(FULL, counts=arrays["data"], white=white, dark=dark, image_size=(40, 36))
    path = write_scan(scan, tmp_path / "s.h5")
    read = read_scan(path)
    for field in fields(Scan):
        wanted, got = getattr(scan, field.name), getattr(read, field.name)
        if field.name in ("sources", "warnings"):
            continue
        if isinstance(wanted, np.ndarray):
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-5, err_msg=field.name)
        else:
            assert got == wanted, field.name
    assert read.dicom is not None
    assert headers_from_json(read.dicom)[1].PatientID == "SECRET1"
    first = path.read_bytes()
    write_scan(read, tmp_path / "t.h5")
    assert len(first) == (tmp_path / "t.h5").stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.h5", "t.h5"]


def test_written_file_is_data_exchange_to_the_letter(tmp_path: Path) -> None:
    with h5py.File(write_scan(FULL, tmp_path / "s.h5")) as file:
        assert file["exchange/data"].shape == (24, 2, 48)
        assert "data_white" not in file["exchange"]
        np.testing.assert_array_equal(file["exchange/theta"][()], THETA)
        assert file["implements"][()] == b"exchange"
        attributes = file["diffsuite"].attrs
        assert attributes["geometry"] == "fan"
        assert (attributes["image_size"], attributes["center_column"]) == (40, 23.25)
        assert attributes["affine"].shape == (4, 4)


def test_dead_pixels_and_nan_are_repaired_with_a_sentence(tmp_path: Path) -> None:
    arrays = counted(LINES)
    for name in arrays:
        arrays[name][..., 0, 20] = 100.0  # neither beam nor dark: a dead pixel of row 0
    arrays["data"][3, 1, 30] = np.nan
    scan = read_scan(write_exchange(tmp_path / "s.h5", {**arrays, "theta": THETA}))
    expected = LINES.copy()
    expected[:, 0, 20] = (LINES[:, 0, 19] + LINES[:, 0, 21]) / 2
    assert np.abs(scan.line_integrals - expected)[:, 0, 20].max() < 0.03
    assert abs(scan.line_integrals[3, 1, 30] - LINES[3, 1, 29:32].mean()) < 0.1
    told = " ".join(scan.warnings)
    assert "1 dead detector pixel" in told and "1 NaN" in told


def test_starved_rays_are_clipped_and_said(tmp_path: Path) -> None:
    data = np.full((6, 1, 10), 5e4)
    data[:, :, 4] = 0
    scan = read_scan(
        write_exchange(
            tmp_path / "s.h5", {"data": data, "data_white": np.full((1, 1, 10), 1e5), "theta": np.arange(6.0)}
        )
    )
    np.testing.assert_allclose(scan.line_integrals[:, 0, 4], np.log(1e5 / 0.5), rtol=1e-5)
    np.testing.assert_allclose(scan.line_integrals[:, 0, 5], np.log(2), rtol=1e-5)
    assert any("10.0 % of the rays" in w for w in scan.warnings)


def test_radians_are_converted_when_named_and_warned_of_when_not(tmp_path: Path) -> None:
    theta = np.deg2rad(THETA)
    path = write_exchange(tmp_path / "s.h5", {"data": LINES, "theta": theta})
    assert any("looks like radians" in w for w in read_scan(path).warnings)
    with h5py.File(path, "r+") as file:
        file["exchange/theta"].attrs["units"] = "rad"
    np.testing.assert_allclose(read_scan(path).theta_deg, THETA)


def test_key_names_another_array(tmp_path: Path) -> None:
    path = write_exchange(tmp_path / "s.h5", {"data": LINES, "data2": LINES + 1, "theta": THETA})
    np.testing.assert_array_equal(read_scan(path, key="/exchange/data2").line_integrals, LINES + 1)
    with pytest.raises(InputError, match="holds no /exchange/data3"):
        read_scan(path, key="/exchange/data3")


NAN = np.full_like(LINES, np.nan)


@pytest.mark.parametrize(
    ("arrays", "attributes", "says"),
    [
        ({"theta": THETA}, None, "holds no /exchange/data"),
        ({"data": LINES}, None, "holds no theta"),
        ({"data": LINES, "theta": THETA[:-1]}, None, "24 views and 23 angles"),
        ({"data": LINES[0], "theta": THETA}, None, r"\[angle, row, column\] is needed"),
        ({"data": LINES[:0], "theta": THETA[:0]}, None, r"\[angle, row, column\] is needed"),
        ({"data": NAN, "theta": THETA}, None, "wholly NaN"),
        ({"data": np.where(np.arange(48) % 3, LINES, np.nan), "theta": THETA}, None, "too many to repair"),
        ({"data": np.zeros_like(LINES), "theta": THETA}, None, "one value everywhere"),
        ({"data": LINES, "theta": THETA * np.nan}, None, "finite degrees"),
        ({"data": (LINES * 1000).astype(np.uint16), "theta": THETA}, None, "without data_white"),
        ({"data": LINES.astype(np.complex64), "theta": THETA}, None, "real numbers"),
        ({"data": LINES, "theta": THETA, "data_white": np.ones((3, 2, 47))}, None, "data_white has shape"),
        ({"data": LINES, "theta": THETA, "data_white": np.zeros((3, 2, 48))}, None, "too few pixels"),
        ({"data": LINES, "theta": THETA}, {"geometry": "helical"}, "parallel, fan"),
        ({"data": LINES, "theta": THETA}, {"pixel_size_mm": -1.0}, "positive number"),
        ({"data": LINES, "theta": THETA}, {"photons": np.nan}, "finite number"),
        ({"data": LINES, "theta": THETA}, {"center_column": "middle"}, "unreadable center_column"),
        ({"data": LINES, "theta": THETA}, {"affine": np.zeros((4, 4))}, "invertible 4x4"),
        ({"data": LINES, "theta": THETA}, {"image_size": 0}, "positive numbers"),
    ],
)
def test_what_is_wrong_in_an_exchange_file_is_said(
    tmp_path: Path, arrays: dict, attributes: dict | None, says: str
) -> None:
    path = write_exchange(tmp_path / "s.h5", arrays, attributes)
    with pytest.raises(InputError, match=says) as caught:
        read_scan(path)
    assert "s.h5" in str(caught.value) and "\n" not in str(caught.value)


def test_line_integrals_beyond_physics_are_warned_of(tmp_path: Path) -> None:
    scan = read_scan(write_exchange(tmp_path / "s.h5", {"data": LINES * 1000, "theta": THETA}))
    assert any("are these counts or HU" in w for w in scan.warnings)


@pytest.mark.parametrize("center", [20.0, 23.5, 30.25])
def test_rotation_axis_is_found_from_the_centre_of_mass(center: float) -> None:
    lines = disc_sinogram(THETA, 64, 1.0, center + 6, disc=(6.0, -3.0, 9.0))[:, None].astype(np.float32)
    scan = Scan(lines, THETA)
    assert estimate_center_column(scan) == pytest.approx(center + 6, abs=0.02)
    assert estimate_center_column(replace(scan, geometry="fan")) is None
    assert estimate_center_column(replace(scan, theta_deg=THETA / 3)) is None
    assert estimate_center_column(Scan(lines[:, :, 34:], THETA)) is None  # the object leaves the detector


# --- NXtomo ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["entry1/tomo_entry", "scan/deep/tomo"])
def test_nxtomo_tells_frames_apart_by_image_key(tmp_path: Path, entry: str) -> None:
    arrays = counted(LINES)
    invalid = np.full((1, 2, 48), 7.0)
    frames = np.concatenate([arrays["data_white"], arrays["data_dark"], arrays["data"], invalid])
    keys = np.array([1] * 2 + [2] * 3 + [0] * 24 + [3])
    angles = np.concatenate([np.zeros(5), THETA, [180]])
    scan = read_scan(write_nxtomo(tmp_path / "s.nxs", frames, keys, angles, entry))
    np.testing.assert_allclose(scan.line_integrals, LINES, atol=1e-5)
    np.testing.assert_array_equal(scan.theta_deg, THETA)
    assert scan.detector_pitch_mm == pytest.approx(0.002)
    with h5py.File(tmp_path / "s.nxs", "r+") as file:
        file.copy(entry, "second")
    with pytest.raises(InputError, match=f"--key: /{entry}, /second"):
        read_scan(tmp_path / "s.nxs")
    np.testing.assert_array_equal(read_scan(tmp_path / "s.nxs", key="second").theta_deg, THETA)
    with pytest.raises(InputError, match="30 frames, 29 image keys and 30 angles"):
        read_scan(write_nxtomo(tmp_path / "t.nxs", frames, keys[:-1], angles, entry))
    with pytest.raises(InputError, match=r"0 flats \(1\)"):
        read_scan(write_nxtomo(tmp_path / "u.nxs", frames, np.zeros(30, int), angles, entry))


# --- FIPS / HTC2022 --------------------------------------------------------------------------------------------------

ANGLES = np.arange(0, 360, 5.0)
FAN = disc_sinogram(ANGLES, 56, 2.0, 27.5, source=410.66, detector=143.08)


@pytest.mark.parametrize("version", [5, 7.3])
def test_htc_scan(tmp_path: Path, version: float) -> None:
    write = write_htc if version == 5 else write_htc_v73
    scan = read_scan(write(tmp_path / "s.mat", FAN, ANGLES))
    np.testing.assert_allclose(scan.line_integrals[:, 0], FAN, rtol=1e-6)
    np.testing.assert_array_equal(scan.theta_deg, ANGLES)
    assert scan.geometry == "fan" and scan.detector == "flat"
    assert (scan.source_origin_mm, scan.detector_pitch_mm, scan.center_column) == (410.66, 0.2, 27.5)
    assert scan.origin_detector_mm == pytest.approx(143.08)
    assert scan.pixel_size_mm == pytest.approx(0.1483223)
    assert scan.image_size == (512, 512)


def test_effective_pixel_size_follows_from_the_distances(tmp_path: Path) -> None:
    path = write_htc(tmp_path / "s.mat", FAN, ANGLES, effectivePixelSizePost=np.nan)
    with pytest.raises(InputError, match="effectivePixelSizePost"):
        read_scan(path)
    path = write_htc(tmp_path / "s.mat", FAN, ANGLES, distanceUnit="cm", distanceSourceOrigin=41.066)
    assert read_scan(path).source_origin_mm == pytest.approx(410.66)


@pytest.mark.parametrize(
    ("sinogram", "angles", "changes", "says"),
    [
        (FAN, ANGLES[:-1], {}, "72 views and 71 angles"),
        (FAN * np.nan, ANGLES, {}, "wholly NaN"),
        (FAN[0], ANGLES, {}, "1 views and 72 angles"),
        (np.stack([FAN, FAN]), ANGLES, {}, r"\(view, bin\)"),
        (FAN, ANGLES, {"distanceSourceDetector": 300.0}, "nearer to the source"),
        (FAN, ANGLES, {"distanceSourceOrigin": -1.0}, "positive number"),
        (FAN, ANGLES, {"distanceUnit": "furlong"}, "mm, cm or m"),
    ],
)
def test_wrong_matlab_scans_are_refused(
    tmp_path: Path, sinogram: np.ndarray, angles: np.ndarray, changes: dict, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read_scan(write_htc(tmp_path / "s.mat", sinogram, angles, **changes))


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_5_reader_agrees_with_scipy(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    content = {
        "numbers": rng.normal(size=(3, 4, 2)), "few": np.uint8([[1, 2]]), "flag": np.array([[True, False]]),
        "text": "Überschrift", "empty": np.zeros((0, 3)),
        "CtData": {"deep": {"deeper": {"x": np.float32(2.5)}}, "note": "a", "counts": np.arange(1000, dtype=np.int64)},
    }  # fmt: skip
    scipy.io.savemat(tmp_path / "s.mat", {**content, "cell": np.array([1, "a"], object)}, do_compression=compressed)
    read = read_mat5(tmp_path / "s.mat")
    assert read["text"] == content["text"] and read["cell"] is None
    for name in ("numbers", "few", "flag", "empty"):
        np.testing.assert_array_equal(read[name], content[name])
    assert read["CtData"]["deep"]["deeper"]["x"] == 2.5 and read["CtData"]["note"] == "a"
    np.testing.assert_array_equal(read["CtData"]["counts"].ravel(), np.arange(1000))


def test_matlab_file_without_or_with_several_scans(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "s.mat", {"A": np.eye(3)})
    with pytest.raises(InputError, match="holds A"):
        read_scan(tmp_path / "s.mat")
    struct = {"sinogram": FAN, "parameters": {"angles": ANGLES}}
    scipy.io.savemat(tmp_path / "s.mat", {"CtDataFull": struct, "CtDataLimited": struct})
    with pytest.raises(InputError, match="--key: CtDataFull, CtDataLimited"):
        read_scan(tmp_path / "s.mat")
    assert read_scan(tmp_path / "s.mat", key="CtDataLimited").shape == (72, 1, 56)
    with pytest.raises(InputError, match="no scan 'x'"):
        read_scan(tmp_path / "s.mat", key="x")


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s.h5", "s.mat", "s73.mat", "pd"])
def test_damaged_scans_raise_input_error_or_read(tmp_path: Path, name: str) -> None:
    if name == "pd":
        write_ct_pd(tmp_path / name, LINES[:4], np.deg2rad(THETA[:4]), center=23.0)
        victim = tmp_path / name / "proj_0001.dcm"
    else:
        victim = tmp_path / name
        {"s.h5": lambda p: write_scan(FULL, p), "s.mat": lambda p: write_htc(p, FAN, ANGLES)}.get(
            name, lambda p: write_htc_v73(p, FAN, ANGLES)
        )(victim)
    good = victim.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(80):
        bad = bytearray(good)
        if trial % 2 or name in ("s.h5", "s73.mat"):  # libhdf5 itself may crash on random bytes in its tables
            bad = bad[: int(rng.integers(1, len(bad)))]
        else:
            for place in rng.integers(0, min(len(bad), 3000), 6):
                bad[place] = int(rng.integers(256))
        victim.write_bytes(bytes(bad))
        try:
            assert np.isfinite(read_scan(tmp_path / name).line_integrals).all()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused >= 40


# --- real scans ------------------------------------------------------------------------------------------------------


def disagreement(scan: Scan, turn: float) -> float:
    """RMS difference of each ray to the same line measured from the other side, relative to the RMS line integral.

    In fan beam (th, gamma) and (th + 180 - 2 gamma, -gamma) are one line; `turn` = -1 assumes the opposite rotation.
    """
    assert scan.source_origin_mm and scan.origin_detector_mm and scan.detector_pitch_mm and scan.center_column
    lines, theta = scan.line_integrals[:-1, 0], scan.theta_deg[:-1]
    offset = np.arange(lines.shape[1]) - scan.center_column
    gamma = np.rad2deg(np.arctan(offset * scan.detector_pitch_mm / (scan.source_origin_mm + scan.origin_detector_mm)))
    step = theta[1] - theta[0]
    other = (theta[:, None] + 180 - 2 * turn * gamma) / step
    low = np.floor(other).astype(int)
    weight = other - low
    mirrored = lines[:, ::-1]
    columns = np.arange(lines.shape[1])
    n = len(theta)
    twin = (1 - weight) * mirrored[low % n, columns] + weight * mirrored[(low + 1) % n, columns]
    return float(np.sqrt(np.mean((lines - twin) ** 2) / np.mean(lines**2)))


@pytest.mark.parametrize("disc", ["ta", "tc", "solid_disc"])
def test_htc_scan_turns_as_the_convention_says(ct_data: Path, disc: str) -> None:
    scan = read_scan(ct_data / f"htc2022_{disc}_full.mat")
    assert scan.shape == (721, 1, 560)
    assert scan.theta_deg[-1] == 360
    right = disagreement(scan, 1.0)
    assert right < 0.02
    assert right < (0.95 if disc == "solid_disc" else 0.5) * disagreement(scan, -1.0)  # a disc looks alike either way
    shifted = replace(scan, line_integrals=np.roll(scan.line_integrals, 2, axis=2))
    assert disagreement(shifted, 1.0) > 1.2 * right


def test_synchrotron_tooth(ct_data: Path) -> None:
    scan = read_scan(ct_data / "synchrotron_tooth_dxchange.h5")
    assert scan.shape == (181, 2, 640)
    assert scan.counts is not None and scan.white is not None and scan.white.shape == (2, 640)
    assert np.isfinite(scan.line_integrals).all()
    assert 0.5 < np.quantile(scan.line_integrals, 0.99) < 5
    assert abs(float(np.median(scan.line_integrals[:, :, :40]))) < 0.05  # beside the tooth: open beam
    assert scan.theta_deg[0] == 0 and 179 < scan.theta_deg[-1] < 180
    assert estimate_center_column(scan) == pytest.approx(296, abs=0.5)  # the value tomopy's own example uses
