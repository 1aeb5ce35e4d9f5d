"""NIfTI images in and out, `(x, y, slice, ...)` in the file, `(..., slice, y, x)` in memory, voxel order kept."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from domains.mri.containers import Volume
from suite.errors import InputError
from suite.files import atomic_file, existing, reading


def read_nifti(path: str | Path) -> Volume:
    """A NIfTI image of real numbers, scl_slope and scl_inter applied; complex values give their magnitude.

    Raises:
        InputError: damaged, colours, fewer than two dimensions, no voxel, or no finite value.
    """
    path = existing(path)
    warnings: list[str] = []
    with reading(path, "is not a readable NIfTI image"):
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is a subclass
            raise InputError(f"{path}: is {type(image).__name__}, not a single-file NIfTI image.")
        kind = image.get_data_dtype().kind
        if kind not in "iufc" or len(image.shape) < 2 or 0 in image.shape:
            raise InputError(
                f"{path}: holds {image.get_data_dtype()} values of shape {image.shape}; an image is needed."
            )
        values = np.asanyarray(image.dataobj)
        data = (np.abs(values) if kind == "c" else values).astype(np.float32)
        affine = np.asarray(image.affine, dtype=np.float64).copy()
        affine[:3] *= {"meter": 1e3, "micron": 1e-3}.get(image.header.get_xyzt_units()[0], 1.0)
    if not valid_affine(affine):
        raise InputError(f"{path}: its affine is singular or not finite; an image with a geometry in mm is needed.")
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        warnings.append(f"{path.name}: has neither sform nor qform, so the orientation is a guess.")
    data = data.reshape(*data.shape, *(1,) * (3 - data.ndim))
    bad = ~np.isfinite(data)
    if bad.all():
        raise InputError(f"{path}: every value is NaN or infinite.")
    if bad.any():
        data = np.where(bad, np.float32(0), data)
        warnings.append(f"{path.name}: {int(bad.sum())} value(s) that are not finite were set to 0.")
    return Volume(np.ascontiguousarray(data.T), affine, sources=(path,), warnings=tuple(warnings))


def valid_affine(affine: np.ndarray) -> bool:
    """Whether a 4x4 matrix maps voxels to mm one to one."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return False
    pitch = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((pitch > 1e-6).all() and abs(np.linalg.det(affine[:3, :3] / pitch)) > 1e-3)


def write_nifti(volume: Volume, path: str | Path) -> Path:
    """`volume` as float32 NIfTI with axes (x, y, slice, ...), by rename."""
    path = Path(path)
    image = nib.Nifti1Image(np.ascontiguousarray(volume.data.T, dtype=np.float32), volume.affine)
    image.set_sform(volume.affine, code=1)
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    sheared = bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)
    image.set_qform(volume.affine, code=0 if sheared else 1)
    image.header.set_xyzt_units("mm")
    with atomic_file(path) as part:
        nib.save(image, part)
    return path
