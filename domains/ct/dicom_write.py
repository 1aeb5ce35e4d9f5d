"""DICOM CT series out: a derived series that keeps patient, study, frame of reference and geometry of its source.

CT Image Storage (PS3.3 A.3): int16 pixels that are HU themselves (slope 1, intercept 0), ImageType
DERIVED\\SECONDARY\\AXIAL\\DIFFSUITE, new series and instance UIDs, references to the source images, the software and
its prior named as contributing equipment. UIDs are hashes of what is written, so the same result has the same UIDs.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from domains.ct.containers import ORIENTATION, Array, Volume, from_lps
from suite.errors import InputError
from suite.files import atomic_folder

SOFTWARE = "diffsuite"
PADDING_HU = -2000
_LPS_RAS = np.array([-1.0, -1.0, 1.0])

_OF_THE_OLD_PIXELS = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "IconImageSequence", "VOILUTSequence", "ModalityLUTSequence",
    "RealWorldValueMappingSequence", "MACParametersSequence", "DigitalSignaturesSequence", "PixelDataProviderURL",
    "InstanceCreatorUID", "NumberOfFrames", "PixelAspectRatio",
)  # fmt: skip
_DOSE = (
    "Exposure", "ExposureInuAs", "ExposureTime", "ExposureTimeInms", "XRayTubeCurrent", "XRayTubeCurrentInuA",
    "CTDIvol", "CTDIPhantomTypeCodeSequence", "EstimatedDoseSaving", "ExposureModulationType", "DoseCalibrationFactor",
    "WaterEquivalentDiameter", "ExposureInmAs", "XRayTubeCurrentInmA",
)  # fmt: skip


@dataclass(frozen=True)
class Derivation:
    """What a derived series says of its making.

    Attributes:
        series_description: at most 64 characters, e.g. "DIFFSUITE dds 30 views".
        text: DerivationDescription, e.g. method, evaluations, seed.
        version: of this software.
        model: name and hash of the prior, or empty for a method without one.
        simulated_dose: True when the low dose was simulated: dose and tube values of the source are then dropped,
            since they are not what was delivered.
        created: time of creation; None = now. It does not enter the UIDs.
    """

    series_description: str
    text: str
    version: str
    model: str = ""
    simulated_dose: bool = False
    created: datetime | None = None


def write_series(volume: Volume, folder: str | Path, derivation: Derivation) -> list[Path]:
    """`volume` (in HU) as `folder/0001.dcm`, ... from the feet up; the folder appears whole or not at all.

    With `volume.headers` the series joins the source's patient, study and frame of reference, de-identification flags
    included; private elements, overlays and whatever described the old pixels are dropped on purpose. Without headers a
    minimal series with an empty patient is made. Pixels that are not `volume.valid` are written as PixelPaddingValue.

    Returns:
        The files, in slice order.

    Raises:
        InputError: values that are not HU, or headers that do not match the slices.
    """
    folder = Path(folder)
    if volume.unit != "HU":
        raise InputError(f"{folder}: a DICOM CT series holds HU, not {volume.unit}; give mu_water_per_mm.")
    if volume.headers is not None and len(volume.headers) != len(volume.data):
        raise InputError(f"{folder}: {len(volume.headers)} DICOM headers do not match {len(volume.data)} slices.")
    pixels, affine = _stored(volume)
    headers = volume.headers or _minimal_headers(len(pixels), pixels)
    series_uid = _series_uid(derivation, headers, affine, pixels)
    created = derivation.created or datetime.now().astimezone()
    with atomic_folder(folder) as part:
        for k, (header, image) in enumerate(zip(headers, pixels, strict=True)):
            dataset = _derived(header, derivation, created)
            if volume.headers is not None:
                dataset.SourceImageSequence = Items([_source(header)])
            dataset.SeriesInstanceUID = series_uid
            dataset.SOPInstanceUID = hash_uid(f"{series_uid}/{k}")
            dataset.InstanceNumber = k + 1
            offset = None if volume.slice_offsets_mm is None else volume.slice_offsets_mm[k]
            _set_geometry(dataset, header, affine, k, offset)
            _set_pixels(dataset, image, padded=volume.valid is not None)
            _save(dataset, part / f"{k + 1:04d}.dcm")
    return [folder / f"{k + 1:04d}.dcm" for k in range(len(pixels))]


def _stored(volume: Volume) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """HU as int16 in the voxel order of the source slices, and the affine of that order."""
    hu = np.clip(np.rint(volume.data), -32768, 32767)
    if volume.valid is not None:
        hu = np.where(volume.valid, np.maximum(hu, PADDING_HU + 1), PADDING_HU)
    turned, affine = stored_order(volume, hu.astype(np.float32))
    return turned.astype(np.int16), affine


def stored_order(volume: Volume, data: Array) -> tuple[Array, NDArray[np.float64]]:
    """`data`, `(z, y, x)` on the grid of `volume`, in the order in which `write_series` stores it, and that order's affine."""
    order = ORIENTATION if volume.headers is None or volume.orientation[2] not in "SI" else volume.orientation
    return from_lps(data, volume.affine, order[:2] + "S")  # slices stay feet to head


# --- the header ------------------------------------------------------------------------------------------------------


def _derived(header: Dataset, derivation: Derivation, created: datetime) -> Dataset:
    """A copy of `header` that says what a derived image must say (PS3.3 C.7.6.1, C.8.2.1, C.12.1)."""
    dataset = deepcopy(header)
    for element in list(dataset):
        group = element.tag.group
        if group % 2 == 1 or group in (0x0002, 0x7FE0) or 0x5000 <= group <= 0x60FF or group > 0x7FE0:
            del dataset[element.tag]
    for keyword in (*_OF_THE_OLD_PIXELS, *(_DOSE if derivation.simulated_dose else ())):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL", SOFTWARE.upper()]
    dataset.SeriesDescription = plain(derivation.series_description, 64)
    dataset.SeriesNumber = 1000 + int(header.get("SeriesNumber", 0) or 0)
    dataset.DerivationDescription = plain(derivation.text, 1024)
    dataset.BurnedInAnnotation = "NO"
    for name in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{name}Date", created.strftime("%Y%m%d"))
        setattr(dataset, f"{name}Time", created.strftime("%H%M%S"))
    equipment = [deepcopy(item) for item in header.get("ContributingEquipmentSequence", [])]
    dataset.ContributingEquipmentSequence = Items([*equipment, equipment_item(derivation, created)])
    return dataset


def _code(value: str, meaning: str) -> Items:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return Items([code])


def _source(header: Dataset) -> Dataset:
    """Reference to the image a slice was made from (CID 7202)."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.get("SOPClassUID", CTImageStorage)
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = _code("121322", "Source image for image processing operation")
    return item


def equipment_item(derivation: Derivation, created: datetime) -> Dataset:
    """This software as processing equipment (CID 7005)."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = _code("109102", "Processing Equipment")
    item.Manufacturer = item.ManufacturerModelName = SOFTWARE
    item.SoftwareVersions = plain(derivation.version, 64)
    item.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    prior = f"; prior {derivation.model}" if derivation.model else ""
    item.ContributionDescription = plain(derivation.text, 1024 - len(prior)) + prior
    return item


def plain(text: str, length: int) -> str:
    """ASCII, which every SpecificCharacterSet a source may have contains."""
    return text.encode("ascii", "replace").decode()[:length]


def _minimal_headers(count: int, pixels: NDArray[np.int16]) -> list[Dataset]:
    """Headers of a valid CT series of nobody: every type 2 attribute empty, UIDs from the pixels."""
    content = hashlib.sha256(pixels.tobytes()).hexdigest()
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
        "ReferringPhysicianName", "StudyID", "AccessionNumber", "KVP", "AcquisitionNumber",
        "PositionReferenceIndicator", "Laterality",
    ):  # fmt: skip
        setattr(header, keyword, None if keyword in ("KVP", "AcquisitionNumber") else "")
    header.PatientPosition = "HFS"
    header.Manufacturer = header.ManufacturerModelName = SOFTWARE
    header.StudyInstanceUID = hash_uid(f"study/{content}")
    header.FrameOfReferenceUID = hash_uid(f"frame/{content}")
    return [deepcopy(header) for _ in range(count)]


# --- geometry and pixels ---------------------------------------------------------------------------------------------


def _set_geometry(
    dataset: Dataset, header: Dataset, affine: NDArray[np.float64], k: int, offset: NDArray[np.float64] | None
) -> None:
    """Image Plane attributes of slice `k` from the affine, so that they hold for a resampled grid too."""
    axes = affine[:3, :2].T * _LPS_RAS
    pitch = np.linalg.norm(axes, axis=1)
    step = k * affine[:3, 2] if offset is None else offset
    position = (affine[:3, 3] + step) * _LPS_RAS
    normal = np.cross(axes[0], axes[1]) / np.prod(pitch)
    old = [float(v) for v in header.get("PixelSpacing", [])]
    if "ReconstructionDiameter" in dataset and not (old and np.allclose(old, [pitch[1], pitch[0]], rtol=1e-3)):
        del dataset.ReconstructionDiameter
    cosines = (axes / pitch[:, None]).ravel()
    dataset.ImageOrientationPatient = _decimals(cosines)
    dataset.ImagePositionPatient = _decimals(position)
    dataset.PixelSpacing = _decimals([pitch[1], pitch[0]])
    if not dataset.get("SliceThickness"):
        dataset.SliceThickness = _decimals([float(np.linalg.norm(affine[:3, 2]))])[0]
    if "SliceLocation" not in dataset:
        dataset.SliceLocation = _decimals([position @ normal])[0]
    if offset is not None and "SpacingBetweenSlices" in dataset:
        del dataset.SpacingBetweenSlices
    same_plane = np.allclose([float(v) for v in header.get("ImageOrientationPatient", [])] or 0, cosines, atol=1e-3)
    if "PatientOrientation" in dataset and not same_plane:
        del dataset.PatientOrientation


def _decimals(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """Decimal strings of at most 16 characters; rounding noise below 1e-9 becomes 0."""
    return [format_number_as_ds(0.0 if abs(v) < 1e-9 else float(v)) for v in values]


def _set_pixels(dataset: Dataset, image: NDArray[np.int16], *, padded: bool) -> None:
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "0", "HU"
    if padded:
        dataset.add_new("PixelPaddingValue", "SS", PADDING_HU)
    dataset.PixelData = image.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"


def _save(dataset: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.save_as(path, enforce_file_format=True)


# --- identity --------------------------------------------------------------------------------------------------------


def _series_uid(
    derivation: Derivation, headers: Sequence[Dataset], affine: NDArray[np.float64], pixels: NDArray[np.int16]
) -> str:
    """The series UID: a hash of everything the series says, except the time it was made."""
    digest = hashlib.sha256()
    said = (derivation.series_description, derivation.text, derivation.version, derivation.model)
    digest.update("\0".join(said).encode())
    digest.update("\0".join(str(h.get("SOPInstanceUID", "")) for h in headers).encode())
    digest.update(np.round(affine, 6).tobytes() + pixels.tobytes())
    return hash_uid(digest.hexdigest())


def hash_uid(text: str) -> str:
    """A UID under 2.25, the root for UUIDs that needs no registration (PS3.5 B.2), from a hash of `text`."""
    return "2.25." + str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=5).int)
