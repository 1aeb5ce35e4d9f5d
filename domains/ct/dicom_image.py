"""One DICOM CT image file: its header, its geometry attributes, and its pixels in HU."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from domains.ct.containers import AIR_HU, Array
from suite.errors import InputError
from suite.files import reading

_REFORMATS = {"REFORMATTED", "MPR", "CSA MPR", "MIP", "MINIP", "AVERAGE", "PROJECTION IMAGE", "VOLUME", "CPR"}
_PIXELS = 0x7FE0


@dataclass(frozen=True)
class SliceImage:
    """One readable image file: its header and what sorting and grouping need."""

    path: Path
    header: Dataset
    series: str
    image_type: tuple[str, ...]

    @property
    def localizer(self) -> bool:
        return "LOCALIZER" in self.image_type

    @property
    def derived(self) -> bool:
        return self.image_type[:1] == ("DERIVED",)

    @property
    def reformat(self) -> bool:
        return self.derived and (bool(_REFORMATS & set(self.image_type)) or not axial(self.header))


def is_dicom(path: Path) -> bool:
    """Whether a file begins like DICOM: the preamble, or a bare group-2 or group-8 element of old writers."""
    with path.open("rb") as file:
        start = file.read(132)
    bare = len(start) == 132 and start[:2] in (b"\x02\0", b"\x08\0") and start[3] == 0
    return start[128:132] == b"DICM" or bare


def read_dicom(path: Path, *, pixels: bool = False) -> Dataset:
    """One DICOM file, every element decoded; private and overlay groups stay.

    Raises:
        InputError: the file is not DICOM or is damaged.
    """
    with reading(path, "is a damaged DICOM file"), quiet():
        return pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns of each unusual value as it decodes; what matters here is checked and told in our own sentences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def slice_image(path: Path, header: Dataset, damaged: set[str]) -> SliceImage:
    """The header without pixels, private groups, curves and overlays; names of undecodable elements go to `damaged`."""
    kept = Dataset()
    for tag in list(header.keys()):
        if tag.group % 2 == 0 and tag.group != _PIXELS and not 0x5000 <= tag.group <= 0x60FF:
            try:
                element = header[tag]  # decodes the value
                if element.VR in ("IS", "DS") and isinstance(element.value, str) and element.value:
                    raise ValueError  # pydicom leaves a number it cannot read as text
                kept[tag] = element
            except Exception:  # pydicom raises anything here; one odd element must not cost the patient's scan
                damaged.add(pydicom.datadict.keyword_for_tag(tag) or str(tag))
    if not all(isinstance(kept.get(name), int) for name in ("Rows", "Columns")):
        raise InputError(f"{path}: is a damaged DICOM file (no readable Rows and Columns).")
    kind = kept.get("ImageType", None) or ()
    values = (kind,) if isinstance(kind, str) else tuple(str(v) for v in kind)
    return SliceImage(path, kept, str(kept.get("SeriesInstanceUID", "")), tuple(v.upper() for v in values))


# --- geometry attributes ----------------------------------------------------------------------------------------------


def numbers(image: SliceImage, name: str, count: int) -> NDArray[np.float64]:
    """A numeric attribute of exactly `count` finite values."""
    with reading(image.path, f"has an unreadable {name}"):
        value = image.header.get(name, None)
        if value is None or value == "":
            raise InputError(f"{image.path}: lacks {name}, without which the slice has no place or scale.")
        found = np.atleast_1d(np.array(value, dtype=np.float64))
        if found.shape != (count,) or not np.isfinite(found).all():
            raise InputError(f"{image.path}: has {name} {value}, and {count} finite number(s) are needed.")
        return found


def directions(image: SliceImage) -> NDArray[np.float64]:
    """Unit vectors along a row and along a column, LPS: `(2, 3)`."""
    axes = numbers(image, "ImageOrientationPatient", 6).reshape(2, 3)
    norms = np.linalg.norm(axes, axis=1)
    if np.abs(norms - 1).max() > 0.01 or abs(axes[0] @ axes[1]) > 0.01:
        raise InputError(f"{image.path}: has an ImageOrientationPatient that is not two perpendicular unit vectors.")
    return np.asarray(axes / norms[:, None])


def axial(header: Dataset) -> bool:
    """Whether the slice normal points along the body axis (a tilt below 45 degrees counts)."""
    cosines = header.get("ImageOrientationPatient", None)
    if cosines is None or len(cosines) != 6:
        return True
    axes = np.array(cosines, dtype=np.float64).reshape(2, 3)
    return bool(abs(np.cross(axes[0], axes[1])[2]) > 0.7)


# --- pixels -----------------------------------------------------------------------------------------------------------


def hounsfield(image: SliceImage, notes: list[str]) -> tuple[Array, NDArray[np.bool_]]:
    """One slice in HU, and where it is not padding."""
    header = image.header
    if str(header.get("PhotometricInterpretation", "")) != "MONOCHROME2" or int(header.get("SamplesPerPixel", 1)) != 1:
        raise InputError(
            f"{image.path}: is {header.get('PhotometricInterpretation', 'without PhotometricInterpretation')}, and a "
            f"MONOCHROME2 image is needed (other displays have no agreed HU)."
        )
    kind = str(header.get("RescaleType", "HU") or "HU").upper()
    if kind != "HU":
        raise InputError(f"{image.path}: has RescaleType {kind}, and values in HU are needed.")
    slope = float(numbers(image, "RescaleSlope", 1)[0])
    intercept = float(numbers(image, "RescaleIntercept", 1)[0])
    if slope == 0:
        raise InputError(f"{image.path}: has RescaleSlope 0, which leaves no image.")
    stored = _decoded(image.path)
    if stored.shape != (int(header.Rows), int(header.Columns)):
        raise InputError(f"{image.path}: has pixels of shape {stored.shape} where its header says otherwise.")
    padding = _padding(header, stored)
    if padding.any() and float((stored[padding] * slope + intercept).max()) > -900:
        notes.append(f"{image.path.parent}: PixelPaddingValue lies in the range of tissue and is ignored.")
        padding = np.zeros_like(padding)
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return np.where(padding, np.float32(AIR_HU), hu), ~padding


def _decoded(path: Path) -> NDArray[np.int64]:
    dataset = read_dicom(path, pixels=True)
    with reading(path, "has pixels that cannot be decoded"), quiet():
        if "PixelData" not in dataset:
            raise InputError(f"{path}: holds no PixelData (a truncated file?).")
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        if syntax is None:
            dataset.ensure_file_meta()
            dataset.file_meta.TransferSyntaxUID = syntax = pydicom.uid.ImplicitVRLittleEndian
        if syntax.is_compressed:
            _require_decoder(path, syntax)
        stored = np.asarray(dataset.pixel_array)
        if stored.dtype.kind not in "iu":
            raise InputError(f"{path}: holds {stored.dtype} pixels, and integers are needed.")
        return stored.astype(np.int64)


def _require_decoder(path: Path, syntax: pydicom.uid.UID) -> None:
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError(f"{path}: is compressed as {syntax.name}, which no plug-in of pydicom decodes.") from error
    if not decoder.is_available:
        raise InputError(
            f"{path}: is compressed as {syntax.name}; install its decoder (pip install 'diffsuite[dicom]')."
        )


def _padding(header: Dataset, stored: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where stored values are PixelPaddingValue, or between it and PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2)."""
    value = _as_stored(header, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = _as_stored(header, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return np.asarray((stored >= low) & (stored <= high))


def _as_stored(header: Dataset, name: str) -> int | None:
    """A US-or-SS value in the pixels' own sign, whichever of the two its writer chose."""
    value = header.get(name, None)
    if value is None or value == "":
        return None
    signed, bits = int(header.get("PixelRepresentation", 0)), int(header.get("BitsAllocated", 16))
    number = int(value)
    if signed and number >= 1 << (bits - 1):
        return number - (1 << bits)
    return number + (1 << bits) if not signed and number < 0 else number


# --- headers as JSON --------------------------------------------------------------------------------------------------


def headers_to_json(headers: Sequence[Dataset]) -> str:
    """Per-slice headers as a JSON list (DICOM JSON model, PS3.18 F), to travel inside a scan file."""
    return json.dumps([h.to_json_dict(suppress_invalid_tags=True) for h in headers])


def headers_from_json(text: str) -> tuple[Dataset, ...]:
    """The inverse of `headers_to_json`.

    Raises:
        InputError: the text is not such a list.
    """
    with reading(Path("DICOM header"), "is not a JSON list of DICOM headers"):
        items = json.loads(text)
        return tuple(Dataset.from_json(item) for item in (items if isinstance(items, list) else [items]))
