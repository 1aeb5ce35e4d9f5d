"""What the ultrasound tests share: a phantom cine in every format, tiny networks with random weights, calls."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
import scipy.io
import torch
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from cli import main
from domains.ultrasound.phantom import heart
from domains.ultrasound.training import UNITS
from suite.network import Preconditioned, UNet
from suite.prior import Card, Prior

ROOT = Path(__file__).resolve().parent.parent
FRAMES, SIDE = 4, 64


def ultrasound_data() -> Path:
    """The folder of real ultrasound data, from DIFFSUITE_DATA or beside the checkout; skips where there is none."""
    folder = Path(os.environ.get("DIFFSUITE_DATA", ROOT.parent / "shared" / "data")) / "ultrasound"
    if not folder.is_dir():
        pytest.skip("no real ultrasound data here (set DIFFSUITE_DATA)")
    return folder


def ultrasound(*words: str | Path) -> int:
    return main(["ultrasound", *map(str, words)])


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def save_prior(path: Path, kind: str) -> Path:
    """A network with random weights: everything a prior has but knowledge."""
    torch.manual_seed(0)
    condition = 12 if kind == "restore" else 0
    net = UNet(4 + condition, 4, [8, 8], blocks=1, features=8)
    card = {
        "name": f"random-{kind}", "domain": "ultrasound", "description": "", "unit": UNITS[kind], "scale": 1.0, "offset": 0.0,
        "channels": 4, "condition_channels": condition, "value_range": (0.0, 1.0), "network": net.settings, "process": "flow",
        "sigma_data": 0.2, "sigma_range": (1e-3, 50.0), "data": ["a"], "validation_data": ["b"], "licence": "CC0",
        "training": {}, "validation": {},
    }  # fmt: skip
    Prior(Preconditioned(net, 0.2, (1e-3, 50.0)), Card(**card)).save(path)
    return path


def cine() -> np.ndarray:
    """uint8 `(frame, row, column)`."""
    return heart(FRAMES, SIDE)


def rf() -> np.ndarray:
    """int16 RF `(frame, row, column)`: the phantom's envelope on a carrier."""
    envelope = 10 ** (3 * (cine() / 255.0 - 1))
    carrier = np.cos(2 * np.pi * 0.25 * np.arange(SIDE))[:, None]
    return np.rint(8000 * envelope * carrier).astype(np.int16)


def iq() -> np.ndarray:
    """complex64 IQ `(frame, row, column)` of whole numbers."""
    phase = np.exp(1j * np.random.default_rng(0).uniform(0, 2 * np.pi, (SIDE, SIDE)))
    return (np.round(8000 * 10 ** (3 * (cine() / 255.0 - 1)) * phase)).astype(np.complex64)


def write_npz(path: Path) -> Path:
    np.savez(path, cluttered=cine(), clean=cine() // 2, fps=np.float64(25.0), note=np.arange(3))
    return path


def write_mha(path: Path, array: np.ndarray, kind: str, spacing: str, *, compressed: bool = True) -> Path:
    raw = array.tobytes()
    raw = zlib.compress(raw) if compressed else raw
    size = " ".join(map(str, array.shape[::-1]))
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
    lines += [f"CompressedData = {compressed}", *([f"CompressedDataSize = {len(raw)}"] if compressed else [])]
    lines += [f"ElementSpacing = {spacing}", f"DimSize = {size}", f"ElementType = {kind}", "ElementDataFile = LOCAL"]
    path.write_bytes(("\n".join(lines) + "\n").encode() + raw)
    return path


def write_clarius(path: Path, array: np.ndarray, size: int) -> Path:
    """`array` `(frame, line, sample)` uint8, int16, or int16 `(..., 2)`."""
    frames, lines, samples = array.shape[:3]
    blocks = b"".join(np.int64(k * 50_000_000).tobytes() + array[k].tobytes() for k in range(frames))
    path.write_bytes(np.asarray([1, frames, lines, samples, size], "<i4").tobytes() + blocks)
    path.with_suffix(".yml").write_text("frames: 4\nframe rate: 20 Hz\ntype: x\nfocus:\n  - {depth: 1}\n")
    return path


def write_zea(path: Path, name: str, array: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.create_dataset(name, data=array, compression="gzip")
        data[name].attrs["unit"] = "unitless"
        scan = file.create_group("scan")
        scan.create_dataset("sound_speed", data=1540.0).attrs["unit"] = "m/s"
        scan.create_dataset("time_to_next_transmit", data=np.full((len(array), 2), 0.01))
    return path


def write_picmus(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("US/US_DATASET0000")
        group.create_dataset("data/real", data=iq().real.transpose(0, 2, 1))
        group.create_dataset("data/imag", data=iq().imag.transpose(0, 2, 1))
        group.create_dataset("sampling_frequency", data=np.float32(5e6))
    return path


def write_uff(path: Path, array: np.ndarray, *, sector: bool = True, depth_first: bool = True) -> Path:
    """`array` `(frame, row, column)` as USTB's beamformed data `(frames, 1, 1, pixels)`."""
    frames, rows, columns = array.shape
    flat = (array.transpose(0, 2, 1) if depth_first else array).reshape(frames, 1, 1, -1)
    with h5py.File(path, "w") as file:
        group = file.create_group("b_data")
        group.attrs["class"], group["frame_rate"] = "uff.beamformed_data", 25.0
        if np.iscomplexobj(array):
            group["data/real"], group["data/imag"] = flat.real.astype(np.float32), flat.imag.astype(np.float32)
        else:
            group["data"] = flat
        scan = group.create_group("scan")
        scan.attrs["class"] = "uff.sector_scan" if sector else "uff.linear_scan"
        depth, across = np.linspace(0.01, 0.11, rows), np.linspace(-0.6, 0.6, columns)
        r, a = np.meshgrid(depth, across, indexing="ij")
        x, z = (r * np.sin(a), r * np.cos(a)) if sector else (0.02 * a, r)
        scan["x"], scan["z"] = ((v.T if depth_first else v).ravel() for v in (x, z))
        scan["depth_axis" if sector else "z_axis"] = depth
        scan["azimuth_axis" if sector else "x_axis"] = across if sector else 0.02 * across
        file.create_group("note").attrs["class"] = "uff.point"
    return path


def write_mat(path: Path) -> Path:
    scipy.io.savemat(path, {"RF": rf().transpose(1, 2, 0), "param": {"fs": 5e6}}, do_compression=True)
    return path


def dicom(pixels: np.ndarray, photometric: str, *, region: tuple[int, int, int, int] | None = None) -> FileDataset:
    """An ultrasound instance of `(frame, row, column[, 3])` uint8, or indices with a palette."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    out.SOPClassUID, out.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    out.StudyInstanceUID, out.SeriesInstanceUID = generate_uid(), generate_uid()
    out.Modality, out.PatientName, out.PatientID, out.SeriesNumber, out.InstanceNumber = "US", "A^B", "1", 3, 7
    out.ImageType, out.FrameTime, out.FrameIncrementPointer = ["ORIGINAL", "PRIMARY"], "40.0", 0x00181063
    out.NumberOfFrames, out.Rows, out.Columns = len(pixels), pixels.shape[1], pixels.shape[2]
    out.SamplesPerPixel, out.PhotometricInterpretation = 3 if pixels.ndim == 4 else 1, photometric
    out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = 8, 8, 7, 0
    if pixels.ndim == 4:
        out.PlanarConfiguration = 0
    if photometric == "PALETTE COLOR":
        ramp = np.arange(256, dtype=np.uint16) * 257
        for name in ("Red", "Green", "Blue"):
            setattr(out, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
            setattr(out, f"{name}PaletteColorLookupTableData", ramp.tobytes())
    if region is not None:
        box = Dataset()
        box.RegionSpatialFormat, box.RegionDataType, box.RegionFlags = 1, 1, 0
        box.RegionLocationMinX0, box.RegionLocationMinY0, box.RegionLocationMaxX1, box.RegionLocationMaxY1 = region
        box.PhysicalUnitsXDirection, box.PhysicalUnitsYDirection = 3, 3
        box.PhysicalDeltaX, box.PhysicalDeltaY = 0.05, 0.04
        out.SequenceOfUltrasoundRegions = [box]
    out.PixelData = pixels.tobytes()
    return out


def save_dicom(path: Path, dataset: FileDataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(pydicom.dcmread(path).pixel_array)
