"""DICOM ultrasound, single and multi-frame: grey pixels of the sector in, a derived instance out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_color_lut
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from domains.ultrasound.containers import Cine, Layout
from suite import __version__
from suite.errors import InputError
from suite.files import existing, reading

CHROMA = 12
"""A pixel whose channels differ by more is coloured; JPEG leaves some colour in grey pixels."""

FORBIDDEN = set(range(32)) - set(b"\n\f\r\x1b")
"""Bytes that DICOM's text may not hold."""


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its preamble or name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


def read_dicom(path: Path) -> Cine:
    """A cine of an ultrasound instance.

    Raises:
        InputError: not ultrasound, no pixels, an encoding no installed decoder knows, or a damaged file.
    """
    with reading(existing(path), "is not a readable DICOM file"):
        dataset = pydicom.dcmread(path, force=True)
        if "PixelData" not in dataset:
            raise InputError(f"{path}: holds no picture; an ultrasound image or cine is needed.")
        if str(dataset.get("Modality", "US")) not in ("US", "IVUS"):
            raise InputError(f"{path}: is {dataset.Modality}, and ultrasound (US) is needed.")
        pixels = decoded(dataset, path)
    grey, fixed, warnings = _grey(pixels), _overlays(pixels), []
    sector = _regions(dataset, grey.shape[1:])
    if sector is None and dataset.get("SequenceOfUltrasoundRegions"):
        warnings.append(
            f"{path.name}: its ultrasound regions reach beyond the {grey.shape[2]} x {grey.shape[1]} picture; the sector is "
            "estimated from the pixels."
        )
    white = float(2 ** int(dataset.BitsStored) - 1) if pixels.ndim == 3 else 255.0
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return Cine(
        grey.astype(np.float32),
        "grey",
        "dicom",
        path,
        Layout(1, 2, 0),
        pixels.dtype,
        black=white if inverted else 0.0,
        white=0.0 if inverted else white,
        frame_time_ms=frame_time(dataset),
        spacing_mm=_spacing(dataset),
        sector=sector,
        fixed=fixed,
        facts=_facts(dataset, fixed),
        warnings=tuple(warnings),
    )


def decoded(dataset: Dataset, path: Path) -> NDArray[Any]:
    """`(frame, row, column)`, or RGB `(frame, row, column, 3)`."""
    try:
        pixels = dataset.pixel_array
    except (NotImplementedError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{path}: its pixels ({dataset.file_meta.get('TransferSyntaxUID', 'no transfer syntax')}) cannot be decoded; "
            f"install diffsuite[dicom] ({str(error).splitlines()[0]})."
        ) from error
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    if int(dataset.get("NumberOfFrames") or 1) == 1:
        pixels = pixels[None]
    return pixels


def _grey(pixels: NDArray[Any]) -> NDArray[Any]:
    """The brightest channel; of grey pixels any is as good."""
    return pixels if pixels.ndim == 3 else pixels.max(-1)


def _overlays(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Coloured pixels with a rim of one, and thin white lines that never move."""
    grey = _grey(pixels)
    white = grey.min(0) >= 0.97 * np.iinfo(pixels.dtype).max
    still = grey.max(0) == grey.min(0)
    thin = white & still & ~ndimage.binary_opening(white, np.ones((5, 5)))
    fixed: NDArray[np.bool_] = np.broadcast_to(thin, grey.shape).copy()
    if pixels.ndim == 4:
        coloured = pixels.max(-1).astype(np.int16) - pixels.min(-1) > CHROMA
        fixed |= ndimage.binary_dilation(coloured, np.ones((1, 3, 3)))
    return fixed


def _regions(dataset: Dataset, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """The 2D tissue regions as a mask; None where there are none or they do not fit the picture."""
    mask = np.zeros(shape, bool)
    for region in dataset.get("SequenceOfUltrasoundRegions") or []:
        if region.get("RegionSpatialFormat") not in (1, 5) or region.get("RegionDataType") not in (1, None):
            continue
        x0, y0, x1, y1 = (int(region[f"RegionLocation{n}"].value) for n in ("MinX0", "MinY0", "MaxX1", "MaxY1"))
        if not (0 <= x0 < x1 < shape[1] and 0 <= y0 < y1 < shape[0]):
            return None
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask if mask.any() else None


def frame_time(dataset: Dataset) -> float | None:
    """Milliseconds between frames."""
    if dataset.get("FrameTime"):
        return float(dataset.FrameTime)
    vector = dataset.get("FrameTimeVector")
    if vector is not None and len(vector) > 1:
        return float(np.mean([float(v) for v in vector[1:]]))
    rate = dataset.get("CineRate") or dataset.get("RecommendedDisplayFrameRate")
    return 1000 / float(rate) if rate else None


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """(row, column) pitch in mm; the regions tell it in cm."""
    for region in dataset.get("SequenceOfUltrasoundRegions") or []:
        if region.get("PhysicalUnitsXDirection") == 3 and region.get("PhysicalUnitsYDirection") == 3:
            return 10 * abs(float(region.PhysicalDeltaY)), 10 * abs(float(region.PhysicalDeltaX))
    spacing = dataset.get("PixelSpacing")
    return (float(spacing[0]), float(spacing[1])) if spacing else None


def _facts(dataset: Dataset, fixed: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "photometric": str(dataset.PhotometricInterpretation),
        "transfer_syntax": dataset.file_meta.TransferSyntaxUID.name
        if "TransferSyntaxUID" in dataset.file_meta
        else None,
        "manufacturer": str(dataset.get("Manufacturer", "")),
        "regions": len(dataset.get("SequenceOfUltrasoundRegions") or []),
        "coloured_share": round(float(fixed.mean()), 5),
    }


# --- out ---------------------------------------------------------------------------------------------------------------


def write_dicom(cine: Cine, data: NDArray[Any], path: Path) -> None:
    """A derived instance with new UIDs, not compressed; every pixel that did not change is bit-identical as decoded.

    A grey pixel of a colour picture changes by the same amount in its three channels.
    """
    source = pydicom.dcmread(cine.source, force=True)
    pixels = decoded(source, cine.source)
    change = cine.stored(data).astype(np.int32) - _grey(pixels)
    limit = np.iinfo(pixels.dtype).max
    if pixels.ndim == 4:
        change = change[..., None]
    new = np.clip(pixels.astype(np.int32) + change, 0, limit).astype(pixels.dtype)
    dataset = copy.deepcopy(source)
    _describe(dataset, source)
    _set_pixels(dataset, new)
    dataset.save_as(path, enforce_file_format=True)


def _describe(dataset: FileDataset, source: FileDataset) -> None:
    """New identity, where it comes from, and that it is derived."""
    for tag in ("IconImageSequence", "DigitalSignaturesSequence", "MACParametersSequence"):
        if tag in dataset:
            del dataset[tag]
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    kinds = [str(kind) for kind in source.get("ImageType") or ["ORIGINAL", "PRIMARY"]]
    dataset.ImageType = ["DERIVED", *kinds[1:]]
    dataset.DerivationDescription = f"Haze reduced with diffsuite {__version__}; not for primary diagnosis"
    dataset.SeriesDescription = f"{source.get('SeriesDescription', '')} dehazed".strip()[:64]
    if source.get("SeriesNumber") is not None:
        dataset.SeriesNumber = int(source.SeriesNumber) + 1000
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    dataset.SourceImageSequence = DicomSequence([reference])
    if not any(dataset.get(name) for name in ("BodyPartExamined", "Laterality", "ImageLaterality")):
        dataset.Laterality = ""  # where the part may be a paired one, it may be empty, not absent
    _conforming(dataset)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = source.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    if source.file_meta.get("TransferSyntaxUID", ExplicitVRLittleEndian).is_compressed:
        dataset.LossyImageCompression = source.get("LossyImageCompression") or "01"


def _conforming(dataset: FileDataset) -> None:
    """Private text with characters that its type forbids (tabs, as some makers write) is kept byte for byte, as of unknown type."""
    for tag in [tag for tag in dataset.keys() if tag.is_private]:  # noqa: SIM118 - iterating would decode the values
        item = dataset.get_item(tag)
        if isinstance(item, RawDataElement) and item.VR in ("LT", "ST", "UT") and FORBIDDEN & set(item.value or b""):
            dataset[tag] = DataElement(tag, "UN", item.value)


def _set_pixels(dataset: FileDataset, pixels: NDArray[Any]) -> None:
    colour = pixels.ndim == 4
    if colour:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        for name in ("Red", "Green", "Blue"):
            for tag in (f"{name}PaletteColorLookupTableDescriptor", f"{name}PaletteColorLookupTableData"):
                if tag in dataset:
                    del dataset[tag]
        dataset.UltrasoundColorDataPresent = int(dataset.get("UltrasoundColorDataPresent") or 0)
    raw = pixels.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    dataset["PixelData"].is_undefined_length = False
