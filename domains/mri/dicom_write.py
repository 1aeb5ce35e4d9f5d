"""DICOM MR series out: derived images with new series and instance UIDs and the software as contributing equipment.

MR Image Storage (PS3.3 A.4): unsigned 16-bit pixels (signed for phase) with an explicit rescale slope per series, ImageType
DERIVED\\PRIMARY\\<part>\\DIFFSUITE. UIDs are hashes of what is written, so the same result has the same UIDs.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from domains.mri.containers import LPS_RAS, Volume
from suite.errors import InputError
from suite.files import atomic_folder

SOFTWARE = "diffsuite"
_LEVELS = {"M": 4095, "STD": 4095, "P": 4096}
_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber", "PositionReferenceIndicator", "Laterality",
)  # fmt: skip


@dataclass(frozen=True)
class Derivation:
    """What a derived series says of its making.

    Attributes:
        series_description: at most 64 characters.
        text: DerivationDescription: method, evaluations, seed, acceleration, misfit.
        version: of this software.
        model: name and hash of the prior, or empty.
        part: "M" magnitude, "P" phase (radians), "STD" standard deviation.
        created: time of creation; None = now. It does not enter the UIDs.
    """

    series_description: str
    text: str
    version: str
    model: str = ""
    part: str = "M"
    created: datetime | None = None


def write_series(volume: Volume, folder: str | Path, derivation: Derivation) -> list[Path]:
    """`volume` as `folder/0001.dcm`, ...; the folder appears whole or not at all. Raw data name no patient, so the patient is
    left empty; frames beyond the first axis follow one another as temporal positions.

    Returns:
        The files, in slice order.

    Raises:
        InputError: values that are not finite.
    """
    folder = Path(folder)
    if not np.isfinite(volume.data).all():
        raise InputError(f"{folder}: the image holds values that are not finite, which DICOM cannot store.")
    frames = volume.data.reshape(-1, *volume.data.shape[-3:])
    pixels, slope = _stored(frames, derivation.part)
    digest = hashlib.sha256(np.round(volume.affine, 6).tobytes() + pixels.tobytes())
    study = _uid("study/" + "\0".join(map(str, volume.sources)) + hashlib.sha256(volume.affine.tobytes()).hexdigest())
    for said in (derivation.series_description, derivation.text, derivation.version, derivation.model, derivation.part):
        digest.update(said.encode() + b"\0")
    series = _uid(digest.hexdigest())
    created = derivation.created or datetime.now().astimezone()
    files = []
    with atomic_folder(folder) as part:
        for number, (frame, k) in enumerate(np.ndindex(*pixels.shape[:2]), 1):
            dataset = _header(derivation, created, study, series)
            dataset.SOPInstanceUID = _uid(f"{series}/{number}")
            dataset.InstanceNumber = number
            if len(pixels) > 1:
                dataset.TemporalPositionIdentifier, dataset.NumberOfTemporalPositions = frame + 1, len(pixels)
            _set_geometry(dataset, volume.affine, k)
            _set_pixels(dataset, pixels[frame, k], slope, signed=derivation.part == "P")
            _save(dataset, part / f"{number:04d}.dcm")
            files.append(folder / f"{number:04d}.dcm")
    return files


def _stored(frames: NDArray[np.float32], part: str) -> tuple[NDArray[np.int32], float]:
    top = float(np.pi) if part == "P" else float(np.abs(frames).max())
    slope = top / _LEVELS[part] or 1.0
    return np.rint(frames / slope).astype(np.int32), slope


def _header(derivation: Derivation, created: datetime, study: str, series: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _EMPTY:
        setattr(dataset, keyword, "")
    dataset.PatientPosition = "HFS"
    dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.FrameOfReferenceUID = _uid(f"frame/{study}")
    dataset.Manufacturer = dataset.ManufacturerModelName = SOFTWARE
    dataset.ImageType = ["DERIVED", "PRIMARY", derivation.part, SOFTWARE.upper()]
    dataset.SeriesNumber = {"M": 1001, "P": 1002, "STD": 1003}[derivation.part]
    dataset.SeriesDescription = _plain(derivation.series_description, 64)
    dataset.DerivationDescription = _plain(derivation.text, 1024)
    dataset.BurnedInAnnotation = "NO"
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "RM", "NONE", ""
    dataset.MRAcquisitionType = ""
    dataset.RepetitionTime = dataset.EchoTime = dataset.EchoTrainLength = None
    for name in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{name}Date", created.strftime("%Y%m%d"))
        setattr(dataset, f"{name}Time", created.strftime("%H%M%S"))
    dataset.ContributingEquipmentSequence = Items([_equipment(derivation, created)])
    return dataset


def _equipment(derivation: Derivation, created: datetime) -> Dataset:
    """This software as processing equipment (CID 7005)."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "109102", "DCM", "Processing Equipment"
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Items([code])
    item.Manufacturer = item.ManufacturerModelName = SOFTWARE
    item.SoftwareVersions = _plain(derivation.version, 64)
    item.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    prior = f"; prior {derivation.model}" if derivation.model else ""
    item.ContributionDescription = _plain(derivation.text, 1024 - len(prior)) + prior
    return item


def _plain(text: str, length: int) -> str:
    return text.encode("ascii", "replace").decode()[:length]


def _set_geometry(dataset: Dataset, affine: NDArray[np.float64], k: int) -> None:
    """Image Plane attributes of slice `k` (PS3.3 C.7.6.2)."""
    lps = LPS_RAS @ affine
    axes = lps[:3, :2].T
    pitch = np.linalg.norm(axes, axis=1)
    position = lps[:3, 3] + k * lps[:3, 2]
    cosines = axes / pitch[:, None]
    dataset.ImageOrientationPatient = _decimals(cosines.ravel())
    dataset.ImagePositionPatient = _decimals(position)
    dataset.PixelSpacing = _decimals(np.array([pitch[1], pitch[0]]))
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimals(np.linalg.norm(lps[:3, 2:3], axis=0))[0]
    dataset.SliceLocation = _decimals(np.array([position @ np.cross(*cosines)]))[0]


def _decimals(values: NDArray[np.float64]) -> list[str]:
    """Decimal strings of at most 16 characters; rounding noise below 1e-9 becomes 0."""
    return [format_number_as_ds(0.0 if abs(v) < 1e-9 else float(v)) for v in values]


def _set_pixels(dataset: Dataset, image: NDArray[np.int32], slope: float, *, signed: bool) -> None:
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(signed)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = format_number_as_ds(slope), "0", "US"
    dataset.PixelData = image.astype("<i2" if signed else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"


def _save(dataset: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.save_as(path, enforce_file_format=True)


def _uid(text: str) -> str:
    """A UID under 2.25, the root for UUIDs that needs no registration (PS3.5 B.2), from a hash of `text`."""
    return "2.25." + str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=5).int)
