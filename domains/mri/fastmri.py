"""fastMRI HDF5: `kspace` (slice[, coil], row, column), masks along the last axis (Zbontar et al. 2018, arXiv:1811.08839)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.mri.containers import KSpace, checked
from domains.mri.header import fov_affine, parse_header, write_header
from domains.mri.nifti import valid_affine
from suite.errors import InputError
from suite.files import atomic_file, existing, reading

TARGETS = ("reconstruction_rss", "reconstruction_esc")
FACTS = ("acquisition", "acceleration", "num_low_frequency", "snr_db", "noise_sigma", "max", "norm", "mask_kind")


def read_fastmri(path: Path, file: h5py.File, key: str | None = None) -> KSpace:
    """A single- or multi-coil fastMRI file. Acquired is what is not zero; a `mask` beside it is applied where it says less.

    Raises:
        InputError: `kspace` of another shape or type, or a mask that does not fit it.
    """
    item = file[key or "kspace"]
    if not isinstance(item, h5py.Dataset) or item.ndim not in (3, 4) or item.dtype.kind != "c":
        kind = f"{item.dtype} of shape {item.shape}" if isinstance(item, h5py.Dataset) else "a group"
        raise InputError(f"{path}: {item.name} is {kind}; complex (slice, coil, ky, kx) or (slice, ky, kx) is needed.")
    data = item[()].astype(np.complex64)
    data = data[:, None] if data.ndim == 3 else data
    if "mask" in file:
        data = _masked(path, data, np.asarray(file["mask"][()]))
    target = next((np.asarray(file[name][()], np.float32) for name in TARGETS if name in file), None)
    header = parse_header(path, file["ismrmrd_header"][()]) if "ismrmrd_header" in file else None
    matrix = None if target is None or target.ndim != 3 else (int(target.shape[1]), int(target.shape[2]))
    affine = None
    if header is not None:
        matrix = matrix or (header.encoding.recon_matrix[0], header.encoding.recon_matrix[1])
        affine = fov_affine(header.encoding, matrix, rows_are_readout=True)
    if "affine" in file.attrs:
        affine = np.asarray(file.attrs["affine"], np.float64)
        if not valid_affine(affine):
            raise InputError(f"{path}: has an affine that is no invertible 4x4 matrix in mm.")
    sigma = file.attrs.get("noise_sigma")
    facts = {name: _plain(file.attrs[name]) for name in FACTS if name in file.attrs}
    return checked(
        KSpace(
            data,
            matrix=matrix,
            affine=affine,
            noise_sigma=None if sigma is None or not float(sigma) > 0 else float(sigma),
            target=target,
            facts=facts | ({} if header is None else header.facts),
            sources=(path,),
        )
    )


def _plain(value: object) -> object:
    value = np.asarray(value).ravel()[0] if np.asarray(value).size == 1 else np.asarray(value).tolist()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _masked(path: Path, data: NDArray[np.complex64], mask: NDArray[np.generic]) -> NDArray[np.complex64]:
    if mask.shape not in (data.shape[-1:], data.shape[-2:]):
        raise InputError(
            f"{path}: its mask has shape {mask.shape}, and {data.shape[-1:]} or {data.shape[-2:]} is needed."
        )
    return np.where(mask.astype(bool), data, np.complex64(0))


@dataclass(frozen=True, eq=False)
class Simulated:
    """What `mri simulate` writes beside the k-space `(slice, coil, ky, kx)`."""

    kspace: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    target: NDArray[np.float32]
    affine: NDArray[np.float64]
    acceleration: float
    snr_db: float
    noise_sigma: float
    mask_kind: str
    low_frequencies: int


def write_fastmri(scan: Simulated, path: str | Path) -> Path:
    """The simulated scan in fastMRI's layout, by rename; `affine`, `snr_db` and `noise_sigma` are attributes of ours."""
    path = Path(path)
    _, coils, rows, columns = scan.kspace.shape
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    with atomic_file(path) as part, h5py.File(part, "w") as file:
        file.create_dataset("kspace", data=scan.kspace, chunks=(1, coils, rows, columns))
        file.create_dataset("mask", data=scan.mask.astype(np.float32))
        file.create_dataset("reconstruction_rss", data=scan.target)
        header = write_header((rows, columns), tuple(float(s) for s in spacing), coils, scan.acceleration)  # type: ignore[arg-type]
        file.create_dataset("ismrmrd_header", data=header.encode())
        file.attrs.update(
            {
                "max": float(scan.target.max()),
                "norm": float(np.linalg.norm(scan.target)),
                "acquisition": "simulated",
                "patient_id": "",
                "acceleration": scan.acceleration,
                "num_low_frequency": scan.low_frequencies,
                "snr_db": scan.snr_db,
                "noise_sigma": scan.noise_sigma,
                "mask_kind": scan.mask_kind,
                "affine": scan.affine,
            }
        )
    return path


def read_target(path: str | Path) -> NDArray[np.float32]:
    """The reference image `(slice, y, x)` of a fastMRI file.

    Raises:
        InputError: it holds none.
    """
    path = existing(path)
    with reading(path, "is not a readable HDF5 file"), h5py.File(path, "r") as file:
        for name in TARGETS:
            if name in file:
                return np.asarray(file[name][()], np.float32)
    raise InputError(f"{path}: holds no reference image ({' or '.join(TARGETS)}).")
