"""Small CT files for the tests, written from scratch: DICOM series, HDF5 scans, MATLAB scans, DICOM-CT-PD folders."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian


def phantom(slices: int = 5, rows: int = 24, columns: int = 20) -> np.ndarray:
    """int HU `(z, y, x)` without any symmetry, so that each flip and swap shows; air, water and bone."""
    z, y, x = np.ogrid[:slices, :rows, :columns]
    body = (((y - rows * 0.45) / (rows * 0.4)) ** 2 + ((x - columns * 0.55) / (columns * 0.4)) ** 2) < 1
    hu = np.where(body, 40 + 7 * z + 3 * y - 2 * x, -1000)
    hu[:, rows // 4 : rows // 4 + 3, columns // 2 : columns // 2 + 2] = 900
    return hu.astype(np.int64)


def ct_header(**changes: Any) -> Dataset:
    """A CT Image header with what the IOD asks for, and a patient that must never be printed."""
    header = Dataset()
    header.SOPClassUID = CTImageStorage
    header.Modality = "CT"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.PatientName, header.PatientID = "Secret^Name", "SECRET1"
    header.PatientBirthDate, header.PatientSex = "19500101", "F"
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    header.FrameOfReferenceUID, header.PositionReferenceIndicator = "1.2.3.3", ""
    header.StudyDate, header.StudyTime, header.StudyID = "20200101", "101010", "7"
    header.AccessionNumber, header.ReferringPhysicianName = "A1", "Secret^Doctor"
    header.SeriesNumber, header.AcquisitionNumber, header.Laterality = 4, 1, ""
    header.Manufacturer, header.KVP, header.XRayTubeCurrent, header.Exposure = "MAKER", "120", 200, 42
    header.ConvolutionKernel, header.PatientPosition = "STANDARD", "HFS"
    header.ContentDate, header.ContentTime = "20200101", "101011"
    header.SliceThickness, header.PixelSpacing = "2", ["0.8", "0.8"]
    header.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = "1", "-1024", "HU"
    header.WindowCenter, header.WindowWidth = "40", "400"
    for key, value in changes.items():
        if value is None:
            if key in header:
                delattr(header, key)
        else:
            setattr(header, key, value)
    return header


def write_ct(
    path: Path,
    hu: np.ndarray,
    position: tuple[float, float, float],
    *,
    signed: bool = True,
    bits: int = 16,
    number: int = 1,
    implicit: bool = False,
    padding: np.ndarray | None = None,
    padding_value: int = -2000,
    **changes: Any,
) -> Path:
    """One CT slice of HU `(y, x)`, stored as `(hu - intercept) / slope`; `padding` (bool) marks padding pixels."""
    header = ct_header(**changes)
    header.SOPInstanceUID = changes.get("SOPInstanceUID") or f"{header.SeriesInstanceUID}.{number}"
    header.InstanceNumber = number
    if position is not None:
        header.ImagePositionPatient = [str(round(v, 6)) for v in position]
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    stored = np.rint((hu - intercept) / slope).astype(np.int64)
    if padding is not None:
        stored[padding] = padding_value
        header.add_new("PixelPaddingValue", "SS" if padding_value < 0 else "US", padding_value)
    header.Rows, header.Columns = hu.shape
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = changes.get("PhotometricInterpretation", "MONOCHROME2")
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, bits, bits - 1
    header.PixelRepresentation = int(signed)
    header.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    header["PixelData"].VR = "OW"
    return save(header, path, implicit=implicit)


def save(dataset: Dataset, path: Path, *, implicit: bool = False) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_ct_series(
    folder: Path,
    hu: np.ndarray,
    *,
    heights: np.ndarray | None = None,
    shear: float = 0.0,
    origin: tuple[float, float] = (-11.0, -23.0),
    seed: int = 0,
    suffix: str = ".dcm",
    first_number: int = 1,
    **changes: Any,
) -> Path:
    """A series whose file names, instance numbers and positions are in unrelated orders."""
    rng = np.random.default_rng(seed)
    heights = -50.0 + 2.0 * np.arange(len(hu)) if heights is None else heights
    names = rng.permutation(len(hu))
    for k, image in enumerate(hu):
        position = (origin[0], origin[1] + shear * (heights[k] - heights[0]), float(heights[k]))
        write_ct(folder / f"IM{names[k]:04d}{suffix}", image, position, number=first_number + len(hu) - k, **changes)
    return folder


def disc_sinogram(
    theta_deg: np.ndarray,
    bins: int,
    pitch: float,
    center: float,
    *,
    source: float | None = None,
    detector: float = 0.0,
    curved: bool = False,
    disc: tuple[float, float, float] = (12.0, -5.0, 8.0),
    mu: float = 0.02,
) -> np.ndarray:
    """Exact line integrals `(view, bin)` of one disc `(x, y, radius)` in mm: parallel, or fan with `source`."""
    x, y, radius = disc
    theta = np.deg2rad(theta_deg)[:, None]
    u = (np.arange(bins) - center)[None] * pitch
    if source is None:
        distance = x * np.cos(theta) + y * np.sin(theta) - u
    else:
        gamma = u / (source + detector) if curved else np.arctan(u / (source + detector))
        # the ray to bin u from the source at (d sin th, -d cos th) has the normal angle th - gamma, offset d sin gamma
        distance = x * np.cos(theta - gamma) + y * np.sin(theta - gamma) - source * np.sin(gamma)
    return 2 * mu * np.sqrt(np.maximum(radius**2 - distance**2, 0))


def write_exchange(path: Path, arrays: dict[str, Any], attributes: dict[str, Any] | None = None) -> Path:
    """A Data Exchange file with `arrays` under /exchange and `attributes` on /diffsuite (no such group when None)."""
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[f"exchange/{name}"] = value
        if attributes is not None:
            file.create_group("diffsuite").attrs.update(attributes)
    return path


def write_nxtomo(
    path: Path, frames: np.ndarray, keys: np.ndarray, angles: np.ndarray, entry: str = "entry1/tomo_entry"
) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group(entry)
        group["definition"] = "NXtomo"
        group["instrument/detector/data"] = frames
        group["instrument/detector/image_key"] = keys
        group["instrument/detector/x_pixel_size"] = 0.002
        group["instrument/detector/x_pixel_size"].attrs["units"] = "mm"
        group["sample/rotation_angle"] = angles
        group["sample/rotation_angle"].attrs["units"] = "deg"
    return path


HTC_PARAMETERS = {
    "projectName": "htc2022_test_", "geometryType": "Cone", "distanceUnit": "mm", "distanceSourceOrigin": 410.66,
    "distanceSourceDetector": 553.74, "pixelSizePost": 0.2, "effectivePixelSizePost": 0.1483223173330444,
}  # fmt: skip


def write_htc(path: Path, sinogram: np.ndarray, angles: np.ndarray, name: str = "CtDataFull", **changes: Any) -> Path:
    parameters = {**HTC_PARAMETERS, "angles": angles, **changes}
    scipy.io.savemat(path, {name: {"type": "2d", "sinogram": sinogram, "parameters": parameters}})
    return path


def write_htc_v73(path: Path, sinogram: np.ndarray, angles: np.ndarray, name: str = "CtDataLimited") -> Path:
    """The same struct in MATLAB 7.3: HDF5 after a 512-byte user block, arrays column-major, text as uint16."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file[f"{name}/sinogram"] = sinogram.T
        file[f"{name}/parameters/angles"] = angles[:, None]
        for field, value in HTC_PARAMETERS.items():
            if isinstance(value, str):
                text = file.create_dataset(f"{name}/parameters/{field}", data=np.array([[ord(c)] for c in value], "u2"))
                text.attrs["MATLAB_class"] = np.bytes_("char")
            else:
                file[f"{name}/parameters/{field}"] = np.array([[value]])
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\x02IM")
    return path


def write_ct_pd(
    folder: Path,
    lines: np.ndarray,
    phi: np.ndarray,
    *,
    source: float = 595.0,
    source_detector: float = 1085.6,
    pitch: float = 1.2858,
    center: float,
    heights: np.ndarray | None = None,
    shape: str = "CYLINDRICAL",
    mode: str = "FFSNONE",
    kind: str = "AXIAL",
    shift: float = 0.0,
    shuffle: int = 0,
) -> Path:
    """DICOM-CT-PD views of `lines` `(view, row, column)`: transposed uint16 pixels, private little-endian elements."""
    heights = np.zeros(len(lines)) if heights is None else heights
    names = np.random.default_rng(shuffle).permutation(len(lines))
    scale = max(float(lines.max()), 1e-6) / 60000

    def put(view: Dataset, tag: int, vr: str, value: Any) -> None:
        view.add_new(tag, vr, value)

    for k, line in enumerate(lines):
        view = Dataset()
        view.SOPClassUID, view.SOPInstanceUID, view.Modality = CTImageStorage, f"1.2.9.{k}", "CT"
        view.PatientName, view.InstanceNumber, view.SeriesInstanceUID = "Secret^Name", k + 1, "1.2.9"
        for group, creator in ((0x7029, "DET"), (0x7031, "DYN"), (0x7033, "SRC"), (0x7037, "DEF"), (0x7041, "CAL")):
            put(view, group << 16 | 0x10, "LO", creator)
        put(view, 0x70291010, "UN", struct.pack("<H", line.shape[0]))
        put(view, 0x70291011, "UN", struct.pack("<H", line.shape[1]))
        put(view, 0x70291002, "UN", struct.pack("<f", pitch))
        put(view, 0x7029100B, "UN", shape.encode())
        put(view, 0x70311001, "UN", struct.pack("<f", phi[k]))
        put(view, 0x70311002, "UN", struct.pack("<f", heights[k]))
        put(view, 0x70311003, "UN", struct.pack("<f", source))
        put(view, 0x70311031, "UN", struct.pack("<f", source_detector))
        put(view, 0x70311033, "UN", struct.pack("<2f", center + 1, 0.5 * line.shape[0] + 0.5))
        put(view, 0x7033100B, "UN", struct.pack("<f", shift))
        put(view, 0x7033100E, "UN", mode.encode())
        put(view, 0x70331065, "UN", struct.pack("<2f", 2e5, 2e5))
        put(view, 0x70371009, "UN", kind.encode())
        put(view, 0x70411001, "UN", b"0.0192")
        view.Rows, view.Columns = line.T.shape
        view.SamplesPerPixel, view.PhotometricInterpretation = 1, "MONOCHROME2"
        view.BitsAllocated, view.BitsStored, view.HighBit, view.PixelRepresentation = 16, 16, 15, 0
        view.RescaleSlope, view.RescaleIntercept = f"{scale:.9g}", "0"
        view.PixelData = np.rint(line.T / scale).astype("<u2").tobytes()
        view["PixelData"].VR = "OW"
        save(view, folder / f"proj_{names[k]:04d}.dcm")
    return folder
