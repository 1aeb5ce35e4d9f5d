"""Single-file image volumes: NIfTI-1/2 (through nibabel) and MetaImage (.mha, .mhd), read and written."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from domains.ct.containers import Array, Volume, checked, from_lps, to_lps
from suite.errors import InputError
from suite.files import atomic_file, existing, reading

_UNIT_NOTE = "diffsuite unit "
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_nifti(path: str | Path) -> Volume:
    """A 3D NIfTI image in HU (or in 1/mm when this package wrote it so), scl_slope and scl_inter applied.

    Raises:
        InputError: damaged file, a time axis, colours or complex values, no usable geometry, values that are not HU.
    """
    path = existing(path)
    with reading(path, "is not a readable NIfTI image"):
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is a subclass
            raise InputError(f"{path}: is {type(image).__name__}, not a single-file NIfTI image.")
        shape = image.shape + (1,) * (3 - len(image.shape))
        if len([n for n in shape[3:] if n != 1]) or len(shape) < 3:
            raise InputError(f"{path}: has shape {image.shape}, and one 3D volume is needed.")
        kind = image.get_data_dtype().kind
        if kind not in "iuf":
            raise InputError(f"{path}: holds {image.get_data_dtype()} values, and real numbers (HU) are needed.")
        xyz = np.asanyarray(image.dataobj).astype(np.float32).reshape(shape[:3])
        affine, warnings = _nifti_affine(path, image)
        note = bytes(image.header["descrip"].tobytes()).rstrip(b"\0").decode("latin-1")
    if 0 in xyz.shape:
        raise InputError(f"{path}: has shape {xyz.shape}, which holds no voxel.")
    unit = note.removeprefix(_UNIT_NOTE) if note.startswith(_UNIT_NOTE) else "HU"
    data, affine, orientation = to_lps(xyz.transpose(2, 1, 0), affine)
    return checked(Volume(data, affine, unit=unit, orientation=orientation, sources=(path,), warnings=warnings))


def _nifti_affine(path: Path, image: nib.Nifti1Image) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    affine = np.asarray(image.affine, dtype=np.float64).copy()
    scale = {"meter": 1e3, "micron": 1e-3}.get(image.header.get_xyzt_units()[0], 1.0)
    affine[:3] *= scale
    if not valid_affine(affine):
        raise InputError(f"{path}: its affine is singular or not finite; an image with a geometry in mm is needed.")
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        return affine, (f"{path}: has neither sform nor qform, so the orientation is a guess.",)
    return affine, ()


def valid_affine(affine: NDArray[np.float64]) -> bool:
    """Whether a 4x4 matrix maps voxels to mm one to one."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return False
    pitch = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((pitch > 1e-6).all() and abs(np.linalg.det(affine[:3, :3] / pitch)) > 1e-3)


def write_nifti(volume: Volume, path: str | Path, *, dtype: type = np.float32) -> Path:
    """`volume` as NIfTI in the voxel order of its source; `dtype` float32, or int16 (rounded HU).

    A sheared (tilted) stack has its geometry in the sform alone, since a qform cannot say it.

    Raises:
        InputError: an irregular slice distance, which NIfTI cannot hold.
    """
    path = Path(path)
    _require_regular(volume, path, "NIfTI")
    data, affine = from_lps(volume.data, volume.affine, volume.orientation)
    image = nib.Nifti1Image(_as_dtype(data, dtype).transpose(2, 1, 0), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=0 if _sheared(affine) else 1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = (_UNIT_NOTE + volume.unit).encode()
    with atomic_file(path) as part:
        nib.save(image, part)
    return path


def _sheared(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)


def _require_regular(volume: Volume, path: Path, format_name: str) -> None:
    if volume.slice_offsets_mm is not None:
        raise InputError(f"{path}: {format_name} cannot hold a varying slice distance; write a DICOM series instead.")


def _as_dtype(data: Array, dtype: type) -> NDArray[np.generic]:
    if np.issubdtype(dtype, np.integer):
        bounds = np.iinfo(dtype)
        return np.clip(np.rint(data), bounds.min, bounds.max).astype(dtype)
    return data.astype(dtype)


# --- MetaImage -------------------------------------------------------------------------------------------------------

_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_META_HEADER_LIMIT = 1 << 16


def read_mha(path: str | Path) -> Volume:
    """A 3D MetaImage (.mha, or .mhd with its raw file), raw or zlib, in HU.

    Format: ITK MetaIO. `TransformMatrix` lists the direction of each voxel axis in turn; its world is LPS.

    Raises:
        InputError: damaged header, wrong number of bytes, not one 3D volume of real numbers, values that are not HU.
    """
    path = existing(path)
    with reading(path, "is not a readable MetaImage"):
        head, body = _meta_header(path)
        shape = [int(n) for n in head["DimSize"].split()]
        channels = int(head.get("ElementNumberOfChannels", "1"))
        if len(shape) != 3 or int(head.get("NDims", "3")) != 3 or channels != 1 or min(shape) < 1:
            raise InputError(f"{path}: has DimSize {head['DimSize']}, and one 3D volume is needed.")
        dtype = _META_TYPES.get(head["ElementType"])
        if dtype is None:
            raise InputError(f"{path}: has ElementType {head['ElementType']}, and real numbers (HU) are needed.")
        big = head.get("BinaryDataByteOrderMSB", head.get("ElementByteOrderMSB", "False")).lower() == "true"
        kind = np.dtype((">" if big else "<") + dtype)
        raw = _meta_bytes(path, head, body, int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
        data = np.frombuffer(raw, kind).reshape(shape[::-1]).astype(np.float32)
        affine = _meta_affine(path, head)
    note = head.get("Comment", "")
    unit = note.removeprefix(_UNIT_NOTE) if note.startswith(_UNIT_NOTE) else "HU"
    data, affine, orientation = to_lps(data, affine)
    return checked(Volume(data, affine, unit=unit, orientation=orientation, sources=(path,)))


def _meta_header(path: Path) -> tuple[dict[str, str], int]:
    """The `key = value` lines and where they end; ElementDataFile is the last of them."""
    with path.open("rb") as file:
        start = file.read(_META_HEADER_LIMIT)
    head: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in head:
        end = start.find(b"\n", position)
        end = len(start) if end < 0 else end
        key, equals, value = start[position:end].decode("latin-1").partition("=")
        if not equals:
            raise InputError(f"{path}: has no MetaImage header (lines 'key = value' up to ElementDataFile).")
        head[key.strip()] = value.strip()
        position = end + 1
    missing = [key for key in ("DimSize", "ElementType") if key not in head]
    if missing:
        raise InputError(f"{path}: its header lacks {' and '.join(missing)}.")
    return head, position


def _meta_bytes(path: Path, head: dict[str, str], body: int, size: int) -> bytes:
    name = head["ElementDataFile"]
    if name.upper() in {"LIST", ""} or "%" in name:
        raise InputError(f"{path}: its data lie in several files, which is not supported; write them into one file.")
    local = name.upper() == "LOCAL"
    file_path = path if local else path.parent / name
    if not file_path.is_file():
        raise InputError(f"{path}: names {name!r} as its pixel file, which does not exist beside it.")
    with file_path.open("rb") as file:
        file.seek(body if local else max(0, int(head.get("HeaderSize", "0"))))
        raw = file.read()
    if head.get("CompressedData", "False").lower() == "true":
        raw = zlib.decompressobj().decompress(raw, size + 1)
    if len(raw) < size or (local and len(raw) > size):
        raise InputError(f"{file_path}: holds {len(raw)} bytes of pixels where its header promises {size}.")
    return raw[:size]


def _meta_affine(path: Path, head: dict[str, str]) -> NDArray[np.float64]:
    def numbers(*names: str, default: str) -> NDArray[np.float64]:
        text = next((head[name] for name in names if name in head), default)
        return np.array([float(v) for v in text.split()])

    directions = numbers("TransformMatrix", "Rotation", "Orientation", default="1 0 0 0 1 0 0 0 1").reshape(3, 3).T
    affine = np.eye(4)
    affine[:3, :3] = directions * numbers("ElementSpacing", "ElementSize", default="1 1 1")
    affine[:3, 3] = numbers("Offset", "Position", "Origin", default="0 0 0")
    if not valid_affine(affine):
        raise InputError(f"{path}: its spacing and direction give no usable geometry in mm.")
    return _LPS_RAS @ affine


def write_mha(volume: Volume, path: str | Path, *, dtype: type = np.float32, compress: bool = True) -> Path:
    """`volume` as one .mha file in the voxel order of its source; `dtype` float32, or int16 (rounded HU).

    Raises:
        InputError: an irregular slice distance or a tilted stack, which MetaImage cannot hold.
    """
    path = Path(path)
    _require_regular(volume, path, "MetaImage")
    data, affine = from_lps(volume.data, volume.affine, volume.orientation)
    if _sheared(affine):
        raise InputError(f"{path}: MetaImage cannot hold a tilted stack; write NIfTI or a DICOM series instead.")
    stored = np.ascontiguousarray(_as_dtype(data, dtype)).astype(np.dtype(dtype).newbyteorder("<"))
    pixels = zlib.compress(stored.tobytes(), 6) if compress else stored.tobytes()
    lps = _LPS_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    element = next(name for name, code in _META_TYPES.items() if np.dtype(code) == np.dtype(dtype))

    def text(values: NDArray[np.float64]) -> str:
        return " ".join(repr(float(v)) for v in values)

    head = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compress), **({"CompressedDataSize": str(len(pixels))} if compress else {}),
        "TransformMatrix": text((lps[:3, :3] / spacing).T.ravel()), "Offset": text(lps[:3, 3]),
        "CenterOfRotation": "0 0 0", "ElementSpacing": text(spacing), "Comment": _UNIT_NOTE + volume.unit,
        "DimSize": " ".join(str(n) for n in stored.shape[::-1]), "ElementType": element, "ElementDataFile": "LOCAL",
    }  # fmt: skip
    with atomic_file(path) as part:
        part.write_bytes("".join(f"{k} = {v}\n" for k, v in head.items()).encode("latin-1") + pixels)
    return path
