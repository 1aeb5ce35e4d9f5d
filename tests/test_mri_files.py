"""MRI files in and out: every format gives back what was written, every trap of the formats is met, bad files are told."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
import scipy.io
from mri_files import (
    AFFINE,
    centred_fft,
    coil_kspace,
    ismrmrd_xml,
    line,
    mri_data,
    phantom,
    write_ismrmrd,
    write_phantom,
)

from domains.mri.containers import Volume
from domains.mri.data import describe, read_kspace, read_volume
from domains.mri.dicom_write import Derivation, write_series
from domains.mri.nifti import read_nifti, write_nifti
from suite.errors import InputError

NOISE_FLAG, CALIBRATION, BOTH, REVERSE, NAVIGATOR, PHASECORR, FEEDBACK, DUMMY = 19, 20, 21, 22, 23, 24, 26, 27


# --- bare arrays, BART, fastMRI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["k.npy", "v5.mat", "v73.mat", "k.cfl", "fast.h5"])
def test_every_format_gives_back_the_same_kspace(tmp_path: Path, name: str) -> None:
    truth, path = coil_kspace(), tmp_path / name
    if name == "k.npy":
        np.save(path, truth)
    elif name == "v5.mat":
        scipy.io.savemat(path, {"kspace": truth.T, "note": "x", "count": 3.0}, do_compression=True)
    elif name == "v73.mat":
        with h5py.File(path, "w", userblock_size=512) as file:
            pair = np.zeros(truth.shape, [("real", "f4"), ("imag", "f4")])
            pair["real"], pair["imag"] = truth.real, truth.imag
            file["kspace"] = pair  # h5py sees MATLAB's axes reversed
    elif name == "k.cfl":
        write_cfl(path, truth.transpose(3, 2, 1, 0)[:, :, None].reshape(40, 48, 1, 4, *[1] * 9, 2))
    else:
        with h5py.File(path, "w") as file:
            file["kspace"] = truth
    found = read_kspace(path)
    np.testing.assert_array_equal(found.data, truth)
    assert found.data.dtype == np.complex64 and found.coils == 4 and found.acquired.all()


def write_cfl(path: Path, data: np.ndarray) -> None:
    path.with_suffix(".hdr").write_text(
        "# Command\nphantom -k\n# Dimensions\n" + " ".join(map(str, data.shape)) + "\n# Creator\nBART\n"
    )
    data.astype("<c8").ravel(order="F").tofile(path.with_suffix(".cfl"))


def test_bart_axes_echo_time_and_3d(tmp_path: Path) -> None:
    data = np.arange(6 * 5 * 4 * 2 * 3 * 2).reshape(6, 5, 4, 2, 1, 3, 1, 1, 1, 1, 2).astype(np.complex64)
    write_cfl(tmp_path / "k", data)
    found = read_kspace(tmp_path / "k.hdr")
    assert (found.extra, found.three_d) == (("repetition", "contrast"), True)
    assert found.data.shape == (2, 3, 1, 2, 4, 5, 6)
    assert found.data[1, 2, 0, 1, 3, 4, 5] == data[5, 4, 3, 1, 0, 2, 0, 0, 0, 0, 1]


def test_struct_with_real_and_imag_and_a_key(tmp_path: Path) -> None:
    truth = coil_kspace(slices=1)[0].T  # (kx, ky, coil)
    scipy.io.savemat(tmp_path / "s.mat", {"kspace": {"real": truth.real, "imag": truth.imag}, "kref": truth * 2})
    with pytest.raises(InputError, match="--key"):
        read_kspace(tmp_path / "s.mat")
    np.testing.assert_allclose(read_kspace(tmp_path / "s.mat", key="kspace").data[0], truth.T, rtol=1e-6)


def test_fastmri_single_coil_mask_header_and_target(tmp_path: Path) -> None:
    truth, mask = coil_kspace(1)[:, 0], np.arange(40) % 2 == 0
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file["kspace"], file["mask"] = truth, mask
        file["reconstruction_esc"] = phantom()[:, 8:40, 4:36]
        file["ismrmrd_header"] = ismrmrd_xml((48, 40, 1), (48, 40, 1)).encode()
        file.attrs["acquisition"] = "CORPD_FBK"
    found = read_kspace(tmp_path / "k.h5")
    assert found.data.shape == (2, 1, 48, 40) and found.matrix == (32, 32)
    np.testing.assert_array_equal(found.acquired, np.broadcast_to(mask, (48, 40)))
    assert found.affine is not None and np.allclose(np.linalg.norm(found.affine[:3, :3], axis=0), (2, 2, 3))


# --- ISMRMRD ----------------------------------------------------------------------------------------------------------


def cartesian_rows(kspace: np.ndarray, center: int | None = None) -> list[np.void]:
    """Every line of `(slice, coil, ky, kx)`."""
    slices, _, ny, nx = kspace.shape
    middle = nx // 2 if center is None else center
    return [line(kspace[s, :, y], middle, slice=s, kspace_encode_step_1=y) for s in range(slices) for y in range(ny)]


def test_ismrmrd_other_lines_are_never_gridded(tmp_path: Path) -> None:
    truth, junk = coil_kspace(), np.full((4, 40), 1e6, np.complex64)
    noise = (np.random.default_rng(0).normal(size=(2, 4, 256)) * 3).astype(np.float32)
    rows = [line(noise[0] + 1j * noise[1], 0, flag=NOISE_FLAG)]
    rows += [
        line(junk, 20, flag=f, kspace_encode_step_1=9)
        for f in (CALIBRATION, REVERSE, NAVIGATOR, PHASECORR, FEEDBACK, DUMMY)
    ]
    lines = cartesian_rows(truth)
    lines[10]["head"]["flags"] = 1 << (BOTH - 1)  # calibration and imaging: an image line
    found = read_kspace(write_ismrmrd(tmp_path / "k.h5", rows + lines, ismrmrd_xml((40, 48, 1), (40, 48, 1))))
    np.testing.assert_array_equal(found.data, truth)
    assert found.facts["left_out"] == {
        "noise": 1, "calibration": 1, "reverse": 1, "navigator": 1, "phase correction": 1, "feedback": 1, "dummy": 1,
    }  # fmt: skip
    # the noise scan at full bandwidth, in the units of the data (same dwell time)
    assert found.noise is not None and np.isclose(found.noise.real.std(), 3 / np.sqrt(0.8), rtol=0.1)


def test_ismrmrd_oversampling_partial_fourier_averages_and_geometry(tmp_path: Path) -> None:
    wide = centred_fft(np.pad(phantom(), ((0, 0), (0, 0), (20, 20)))[:, None]).astype(
        np.complex64
    )  # 80 samples, 1 coil
    rows = [row for row in cartesian_rows(wide) if row["head"]["idx"]["kspace_encode_step_1"] >= 18]
    for row in rows:
        row["head"]["idx"]["kspace_encode_step_1"] -= 18  # the first line acquired is number 0; the centre is 24 - 18
    rows += [row.copy() for row in rows]  # two averages
    found = read_kspace(write_ismrmrd(tmp_path / "k.h5", rows, ismrmrd_xml((80, 48, 1), (40, 48, 1), center=6)))
    assert found.data.shape == (2, 1, 48, 40) and found.facts["averages"] == 2
    expected = centred_fft(phantom()[:, None])
    np.testing.assert_allclose(found.data[..., 18:, :], expected[..., 18:, :], atol=1e-3)
    assert not found.acquired[:18].any() and found.acquired[18:].all()
    assert found.affine is not None
    # LPS (5, -7, 10) is the centre voxel (20, 24) of slice 0; RAS turns x and y
    np.testing.assert_allclose(found.affine @ [20, 24, 0, 1], [-5, 7, 10, 1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), [2, 2, 3], atol=1e-6)


def test_ismrmrd_asymmetric_echo_keeps_its_centre(tmp_path: Path) -> None:
    truth = coil_kspace()
    rows = [line(truth[s, :, y, 12:], 20 - 12, slice=s, kspace_encode_step_1=y) for s in range(2) for y in range(48)]
    found = read_kspace(write_ismrmrd(tmp_path / "k.h5", rows, ismrmrd_xml((40, 48, 1), (40, 48, 1))))
    np.testing.assert_array_equal(found.data[..., 12:], truth[..., 12:])
    assert not found.data[..., :12].any()


def test_ismrmrd_discarded_samples_and_stale_centre(tmp_path: Path) -> None:
    truth = coil_kspace()
    rows = []
    for row in cartesian_rows(np.pad(truth, ((0, 0),) * 3 + ((3, 2),), constant_values=99), center=23):
        row["head"]["discard_pre"], row["head"]["discard_post"] = 3, 2
        rows.append(row)
    xml = ismrmrd_xml((40, 48, 1), (40, 48, 1))
    np.testing.assert_array_equal(read_kspace(write_ismrmrd(tmp_path / "a.h5", rows, xml)).data, truth)
    # oversampling already removed, centre and encoded matrix still those of the longer readout
    rows = cartesian_rows(truth, center=40)
    xml = ismrmrd_xml((80, 48, 1), (40, 48, 1))
    np.testing.assert_array_equal(read_kspace(write_ismrmrd(tmp_path / "b.h5", rows, xml)).data, truth)


def test_ismrmrd_3d_contrasts_and_repetitions(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = (rng.normal(size=(2, 3, 2, 4, 6, 8)) + 1j).astype(np.complex64)  # repetition, contrast, coil, kz, ky, kx
    rows = [
        line(data[r, c, :, z, y], 4, repetition=r, contrast=c, kspace_encode_step_1=y, kspace_encode_step_2=z)
        for r in range(2) for c in range(3) for z in range(4) for y in range(6)
    ]  # fmt: skip
    found = read_kspace(write_ismrmrd(tmp_path / "k.h5", rows, ismrmrd_xml((8, 6, 4), (8, 6, 4))))
    assert found.three_d and found.extra == ("repetition", "contrast")
    np.testing.assert_array_equal(found.data[:, :, 0], data)


def test_ismrmrd_epi_and_reversed_scans_are_refused(tmp_path: Path) -> None:
    rows = cartesian_rows(coil_kspace())
    xml = ismrmrd_xml((40, 48, 1), (40, 48, 1), trajectory="epi")
    with pytest.raises(InputError, match="EPI"):
        read_kspace(write_ismrmrd(tmp_path / "a.h5", rows, xml))
    for row in rows[::2]:
        row["head"]["flags"] = 1 << (REVERSE - 1)
    with pytest.raises(InputError, match="EPI"):
        read_kspace(write_ismrmrd(tmp_path / "b.h5", rows, ismrmrd_xml((40, 48, 1), (40, 48, 1))))


def test_ismrmrd_radial_trajectory(tmp_path: Path) -> None:
    angle = np.pi * np.arange(5) / 5
    radius = (np.arange(40) - 20) / 40
    rows = [
        line(np.ones((3, 40)), 20, traj=np.outer(radius, (np.cos(a), np.sin(a))), kspace_encode_step_1=i)
        for i, a in enumerate(angle)
    ]
    found = read_kspace(
        write_ismrmrd(tmp_path / "k.h5", rows, ismrmrd_xml((40, 40, 1), (40, 40, 1), trajectory="radial"))
    )
    assert found.trajectory is not None and found.data.shape == (1, 3, 200)
    np.testing.assert_allclose(found.trajectory[40:80, 0], 40 * radius * np.sin(angle[1]), atol=1e-4)


# --- bad files --------------------------------------------------------------------------------------------------------


def _bad(path: Path) -> dict[str, Path]:
    good = coil_kspace()
    files = {}
    for name, values in {
        "real.npy": good.real, "nan.npy": good * np.nan, "zero.npy": good * 0, "flat.npy": good[0, 0, 0],
        "half.npy": np.where(np.arange(40) < 20, good, np.nan), "six.npy": good[None, None],
    }.items():  # fmt: skip
        np.save(path / name, values)
        files[name] = path / name
    np.save(path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (path / "empty.h5").write_bytes(b"")
    (path / "text.dat").write_bytes(b"hello" * 50)
    (path / "text.xyz").write_bytes(b"hello")
    (path / "text.mat").write_bytes(b"hello" * 99)
    write_cfl(path / "short", good)
    (path / "short.cfl").write_bytes(b"\0" * 80)
    write_cfl(path / "nodim", good)
    (path / "nodim.hdr").write_text("# Command\n")
    with h5py.File(path / "other.h5", "w") as file:
        file["a"] = np.zeros(3)
    with h5py.File(path / "mask.h5", "w") as file:
        file["kspace"], file["mask"] = good, np.ones(7)
    write_ismrmrd(path / "noise.h5", [line(good[0, :, 0], 20, flag=NOISE_FLAG)], ismrmrd_xml((40, 48, 1), (40, 48, 1)))
    write_ismrmrd(path / "outside.h5", cartesian_rows(good), ismrmrd_xml((40, 20, 1), (40, 20, 1)))
    write_ismrmrd(path / "xml.h5", cartesian_rows(good), "<ismrmrdHeader>")
    more = (
        "pickle.npy",
        "empty.h5",
        "text.dat",
        "text.xyz",
        "text.mat",
        "short.cfl",
        "nodim.cfl",
        "other.h5",
        "mask.h5",
    )
    return files | {name: path / name for name in (*more, "noise.h5", "outside.h5", "xml.h5", "missing.npy")}


def test_bad_files_end_in_one_sentence_that_names_them(tmp_path: Path) -> None:
    for name, path in _bad(tmp_path).items():
        with pytest.raises(InputError) as caught:
            read_kspace(path)
        said = str(caught.value)
        assert Path(name).stem in said and "\n" not in said and len(said) > 20, said


def test_truncated_and_scrambled_files_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_ismrmrd(tmp_path / "i.h5", cartesian_rows(coil_kspace()), ismrmrd_xml((40, 48, 1), (40, 48, 1)))
    np.save(tmp_path / "n.npy", coil_kspace())
    scipy.io.savemat(tmp_path / "m.mat", {"kspace": coil_kspace().T})
    for source in ("i.h5", "n.npy", "m.mat"):
        raw = (tmp_path / source).read_bytes()
        for trial in range(12):
            damaged = bytearray(raw[: int(len(raw) * rng.random())] if trial % 2 else raw)
            for place in rng.integers(0, max(1, min(len(damaged), 4000)), 30):
                if len(damaged):
                    damaged[place] = int(rng.integers(256))
            path = tmp_path / f"damaged-{source}"
            path.write_bytes(bytes(damaged))
            try:
                read_kspace(path)
            except InputError as error:
                assert "damaged" in str(error)


def test_single_nan_counts_as_not_acquired(tmp_path: Path) -> None:
    data = coil_kspace()
    data[0, 1, 5, 6] = np.nan
    np.save(tmp_path / "k.npy", data)
    found = read_kspace(tmp_path / "k.npy")
    assert not found.data[0, :, 5, 6].any() and found.data[0, :, 5, 7].all() and "not acquired" in found.warnings[0]


# --- images -----------------------------------------------------------------------------------------------------------


def test_nifti_round_trip_keeps_order_and_affine(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.8
    write_nifti(Volume(phantom(), sheared), tmp_path / "v.nii.gz")
    found = read_nifti(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(found.data, phantom())
    np.testing.assert_allclose(found.affine, sheared, atol=1e-5)
    part = read_volume(tmp_path / "v.nii.gz", slices=slice(1, 2))
    np.testing.assert_allclose(part.affine[:3, 3], sheared[:3, 3] + sheared[:3, 2], atol=1e-5)
    with pytest.raises(InputError, match="0:2"):
        read_volume(tmp_path / "v.nii.gz", slices=slice(1, 5))


def test_dicom_series_round_trip(tmp_path: Path) -> None:
    turn = AFFINE.copy()
    turn[:3, :3] = [[-1.9, 0.3, 0.4], [0.3, -1.95, 0.6], [-0.43, -0.62, 2.9]]
    volume = Volume(phantom(3), turn)
    files = write_series(volume, tmp_path / "d", Derivation("test", "text", "1", "model"))
    found = read_volume(tmp_path / "d")
    np.testing.assert_allclose(found.data, volume.data, atol=180 / 4095)
    np.testing.assert_allclose(found.affine[:3, :2], turn[:3, :2], atol=1e-3)
    np.testing.assert_allclose(found.affine[:3, 3], turn[:3, 3], atol=1e-3)
    first = pydicom.dcmread(files[0])
    assert list(first.ImageType) == ["DERIVED", "PRIMARY", "M", "DIFFSUITE"] and first.BurnedInAnnotation == "NO"
    assert first.ContributingEquipmentSequence[0].ContributionDescription.endswith("prior model")
    uids = {pydicom.dcmread(f).SOPInstanceUID for f in files}
    assert len(uids) == 3
    again = write_series(volume, tmp_path / "e", Derivation("test", "text", "1", "model"))
    assert pydicom.dcmread(again[0]).SOPInstanceUID == first.SOPInstanceUID
    phase = Volume(np.linspace(-np.pi, np.pi, phantom().size).reshape(phantom().shape).astype(np.float32), turn)
    write_series(phase, tmp_path / "p", Derivation("test", "text", "1", part="P"))
    np.testing.assert_allclose(read_volume(tmp_path / "p").data, phase.data, atol=1e-3)


def test_info_tells_volumes_and_kspace(tmp_path: Path) -> None:
    assert describe(write_phantom(tmp_path / "v.nii.gz"))["shape"] == [2, 48, 40]
    np.save(tmp_path / "k.npy", np.where(np.arange(40) % 2, coil_kspace(), 0))
    facts = describe(tmp_path / "k.npy")
    assert (facts["coils"], facts["acceleration"], facts["lines_acquired"]) == (4, 2.0, 20)


# --- the real files ---------------------------------------------------------------------------------------------------


def test_real_files() -> None:
    folder = mri_data()
    brain = read_kspace(folder / "kspace" / "brain_8ch_poisson_r8.npy")
    assert brain.data.shape == (1, 8, 230, 180) and 7.9 < brain.acquired.size / brain.acquired.sum() < 8.2
    knee = read_kspace(folder / "kspace" / "knee_coronal_fatsat_1ch.mat")
    assert knee.data.shape == (1, 1, 332, 640)
    with pytest.raises(InputError, match="layout"):
        read_kspace(folder / "kspace" / "phantom_radial_33spokes_17ch_3slices.npy")
    radial = read_kspace(
        folder / "kspace" / "phantom_radial_33spokes_17ch_3slices.npy", layout=["slice", "spoke", "coil", "sample"]
    )
    assert radial.data.shape == (3, 17, 33 * 256) and radial.grid == (256, 256)
    dicom = read_volume(folder / "dicom")
    assert dicom.data.shape == (4, 512, 460) and np.allclose(dicom.spacing_mm, (0.5, 0.5, 1.0))


def test_real_twix_phantom_and_epi(monkeypatch: pytest.MonkeyPatch) -> None:
    twixtools = pytest.importorskip("twixtools")
    path = mri_data() / "kspace" / "siemens_gre_2ch_phantom.dat"
    found = read_kspace(path)
    assert found.data.shape == (1, 2, 160, 160) and found.matrix == (160, 160) and found.affine is not None
    image = np.abs(np.fft.ifft2(np.fft.ifftshift(found.data[0], axes=(1, 2))))
    energy = np.fft.fftshift((image**2).sum(0))
    # the phantom lies in the field of view: the border is dark, as no wrong centre or aliasing would leave it
    assert energy[40:120, 40:120].mean() > 20 * energy[:8].mean()
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), (1.25, 1.25, 4.0), rtol=1e-3)
    read = twixtools.read_twix

    def as_epi(*args: object, **options: object) -> object:
        scans = read(*args, **options)
        scans[-1]["hdr"]["MeasYaps"]["sFastImaging"]["lEPIFactor"] = 64
        return scans

    monkeypatch.setattr(twixtools, "read_twix", as_epi)
    with pytest.raises(InputError, match="EPI"):
        read_kspace(path)
