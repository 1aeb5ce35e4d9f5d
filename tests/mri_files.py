"""What the MRI tests share: a phantom, raw-data files of every format written from one truth, a tiny prior, calls."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch

from cli import main
from domains.mri.training import UNIT
from suite.network import Preconditioned, UNet
from suite.prior import Card, Prior

ROOT = Path(__file__).resolve().parent.parent
AFFINE = np.array([[-2.0, 0, 0, 37], [0, -2.0, 0, 81], [0, 0, 3.0, -60], [0, 0, 0, 1]])


def mri_data() -> Path:
    """The folder of real MRI data, from DIFFSUITE_DATA or beside the checkout; skips where there is none."""
    folder = Path(os.environ.get("DIFFSUITE_DATA", ROOT.parent / "shared" / "data")) / "mri"
    if not folder.is_dir():
        pytest.skip("no real MRI data here (set DIFFSUITE_DATA)")
    return folder


def phantom(slices: int = 2, ny: int = 48, nx: int = 40) -> np.ndarray:
    """Magnitudes `(slice, y, x)`: an ellipse with two inserts that move from slice to slice, away from symmetry."""
    z, y, x = np.ogrid[:slices, :ny, :nx]
    u, v = (x - (nx - 1) / 2) / nx, (y - (ny - 1) / 2) / ny
    image = np.where((u / 0.4) ** 2 + (v / 0.43) ** 2 < 1, 100.0, 0.0) + 0.0 * z
    image = np.where((u - 0.13) ** 2 + (v + 0.03 * z) ** 2 < 0.08**2, 180.0, image)
    return np.where((u + 0.15) ** 2 + (v - 0.1) ** 2 < 0.09**2, 40.0, image).astype(np.float32)


def write_phantom(path: Path, **shape: int) -> Path:
    nib.save(nib.Nifti1Image(np.ascontiguousarray(phantom(**shape).transpose(2, 1, 0)), AFFINE), path)
    return path


def centred_fft(image: np.ndarray, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    """The convention, by NumPy: origin at n // 2 on both sides, orthonormal."""
    shifted = np.fft.ifftshift(image, axes=axes)
    return np.fft.fftshift(np.fft.fftn(shifted, axes=axes, norm="ortho"), axes=axes)


def coil_kspace(coils: int = 4, ny: int = 48, nx: int = 40, slices: int = 2) -> np.ndarray:
    """Fully sampled, noise-free k-space `(slice, coil, ky, kx)` of the phantom under smooth maps."""
    from domains.mri.simulation import coil_maps

    maps = coil_maps(coils, (ny, nx), seed=3).numpy()
    return centred_fft(maps * phantom(slices, ny, nx)[:, None]).astype(np.complex64)


def save_prior(path: Path, **changes: Any) -> Path:
    """A prior with random weights: everything a prior has but knowledge."""
    torch.manual_seed(0)
    net = UNet(2, 2, [8, 8], blocks=1, features=8)
    card = {
        "name": "random", "domain": "mri", "description": "", "unit": UNIT, "scale": 1.0, "offset": 0.0, "channels": 2,
        "value_range": (-2.0, 2.0), "network": net.settings, "process": "edm", "sigma_data": 0.35,
        "sigma_range": (1e-3, 50.0), "data": ["a"], "validation_data": ["b"], "licence": "CC0", "training": {},
        "validation": {},
    }  # fmt: skip
    Prior(Preconditioned(net, 0.35, (1e-3, 50.0)), Card(**card | changes)).save(path)
    return path


def mri(*words: str | Path) -> int:
    return main(["mri", *map(str, words)])


def image(path: Path) -> np.ndarray:
    """Voxels `(slice, y, x)` of a NIfTI file."""
    return np.asarray(nib.load(path).dataobj).T


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


# --- ISMRMRD ----------------------------------------------------------------------------------------------------------

_IDX = [
    ("kspace_encode_step_1", "<u2"), ("kspace_encode_step_2", "<u2"), ("average", "<u2"), ("slice", "<u2"),
    ("contrast", "<u2"), ("phase", "<u2"), ("repetition", "<u2"), ("set", "<u2"), ("segment", "<u2"), ("user", "<u2", (8,)),
]  # fmt: skip
_HEAD = [
    ("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4"),
    ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2"),
    ("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,)), ("discard_pre", "<u2"),
    ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2"), ("trajectory_dimensions", "<u2"),
    ("sample_time_us", "<f4"), ("position", "<f4", (3,)), ("read_dir", "<f4", (3,)), ("phase_dir", "<f4", (3,)),
    ("slice_dir", "<f4", (3,)), ("patient_table_position", "<f4", (3,)), ("idx", _IDX), ("user_int", "<i4", (8,)),
    ("user_float", "<f4", (8,)),
]  # fmt: skip
_TYPE = np.dtype([("head", _HEAD), ("traj", h5py.vlen_dtype(np.float32)), ("data", h5py.vlen_dtype(np.float32))])


def line(
    samples: np.ndarray, center: int, *, flag: int = 0, traj: np.ndarray | None = None, **counters: int
) -> np.void:
    """One acquisition; `flag` is the standard's number of the flag (1-based), 0 for none."""
    table = np.zeros(1, _TYPE)
    row = table[0]
    head = row["head"]
    head["version"], head["flags"] = 1, 0 if flag == 0 else 1 << (flag - 1)
    head["number_of_samples"], head["active_channels"] = samples.shape[1], samples.shape[0]
    head["center_sample"], head["sample_time_us"] = center, 5.0
    head["read_dir"], head["phase_dir"], head["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    head["position"] = (5.0, -7.0, 10.0 + 3 * counters.get("slice", 0))
    for name, value in counters.items():
        head["idx"][name] = value
    table["traj"][0] = np.zeros(0, np.float32) if traj is None else traj.astype(np.float32).ravel()
    head["trajectory_dimensions"] = 0 if traj is None else traj.shape[1]
    table["data"][0] = np.ascontiguousarray(samples, np.complex64).view(np.float32).ravel()
    return row


def ismrmrd_xml(
    encoded: tuple[int, int, int], recon: tuple[int, int, int], *, trajectory: str = "cartesian", center: int = -1
) -> str:
    """A header; the encoded field of view grows with the oversampling, pixels are 2 x 2 x 3 mm."""

    def space(name: str, n: tuple[int, int, int]) -> str:
        return (
            f"<{name}><matrixSize><x>{n[0]}</x><y>{n[1]}</y><z>{n[2]}</z></matrixSize><fieldOfView_mm><x>{2 * n[0]}</x>"
            f"<y>{2 * n[1]}</y><z>{3 * n[2]}</z></fieldOfView_mm></{name}>"
        )

    middle = encoded[1] // 2 if center < 0 else center
    limits = (
        f"<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{encoded[1] - 1}</maximum><center>{middle}"
        f"</center></kspace_encoding_step_1><kspace_encoding_step_2><minimum>0</minimum><maximum>{encoded[2] - 1}</maximum>"
        f"<center>{encoded[2] // 2}</center></kspace_encoding_step_2></encodingLimits>"
    )
    return (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><acquisitionSystemInformation>'
        "<relativeReceiverNoiseBandwidth>0.8</relativeReceiverNoiseBandwidth></acquisitionSystemInformation><encoding>"
        f"{space('encodedSpace', encoded)}{space('reconSpace', recon)}{limits}<trajectory>{trajectory}</trajectory>"
        "</encoding></ismrmrdHeader>"
    )


def write_ismrmrd(path: Path, rows: list[np.void], xml: str) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", data=[xml], dtype=h5py.string_dtype())
        table = group.create_dataset("data", (len(rows),), _TYPE)
        for i, row in enumerate(rows):
            table[i] = row
    return path
