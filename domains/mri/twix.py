"""Siemens raw data (twix, VB and VD/VE) through twixtools, which the extra `twix` brings."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.mri.containers import KSpace
from domains.mri.lines import Encoding, Readout, gridded, renumbered
from suite.errors import InputError
from suite.files import existing, reading

_CARTESIAN = 1
_LEFT_OUT = {
    "phase correction": "PHASCOR", "navigator": "RTFEEDBACK", "feedback": "HPFEEDBACK", "dummy": "RETRO_DUMMYSCAN",
    "slice acceleration reference": "SLICE_ACCEL_REFSCAN",
    "phase stabilisation": "PHASESTABSCAN", "phase stabilisation reference": "REFPHASESTABSCAN", "sync": "SYNCDATA",
    "reverse": "REFLECT",
}  # fmt: skip


def read_twix(path: str | Path) -> KSpace:
    """The last measurement of a twix file; the noise adjustment of any measurement serves prewhitening.

    Raises:
        InputError: the extra is not installed; EPI; radial, spiral or other trajectories; no image line; damaged.
    """
    path = existing(path)
    try:
        import twixtools
    except ImportError:
        raise InputError(
            f"{path}: Siemens raw data need twixtools; install it with pip install 'diffsuite[twix]'."
        ) from None
    with reading(path, "is not a readable Siemens raw file"), contextlib.redirect_stdout(io.StringIO()):
        scans = twixtools.read_twix(str(path), parse_pmu=False, parse_geometry=False, verbose=False)
        return _kspace(path, scans)


def _kspace(path: Path, scans: list[Any]) -> KSpace:
    if not scans or not scans[-1].get("mdb"):
        raise InputError(f"{path}: holds no measurement.")
    scan = scans[-1]
    protocol: Mapping[str, Any] = scan["hdr"]["MeasYaps"]
    grid = protocol.get("sKSpace", {})
    blocks = [m for m in scan["mdb"] if not m.is_flag_set("ACQEND")]
    reverse = sum(m.is_flag_set("REFLECT") for m in blocks)
    if int(protocol.get("sFastImaging", {}).get("lEPIFactor", 1)) > 1 or reverse > 0.25 * len(blocks):
        raise InputError(
            f"{path}: is an EPI scan (EPI factor {protocol.get('sFastImaging', {}).get('lEPIFactor', 1)}, {reverse} reversed "
            "lines), which needs a ghost correction that this version does not do; reconstruct it on the scanner."
        )
    if int(grid.get("ucTrajectory", _CARTESIAN)) != _CARTESIAN:
        raise InputError(f"{path}: is no Cartesian scan; convert it to ISMRMRD, which can carry its trajectory.")
    image, dropped = _imaging(blocks)
    if not image:
        raise InputError(f"{path}: holds no image line (only {dropped}).")
    encoding = _encoding(path, protocol, image)
    noise, dwell = _noise(scans)
    readouts = renumbered([_readout(m, protocol) for m in image])
    facts = {"protocol": str(scan["hdr"].get("Meas", {}).get("tProtocolName", "")), "left_out": dropped}
    return gridded(path, readouts, encoding, noise, dwell, **facts, noise_scan=noise is not None)


def _imaging(blocks: list[Any]) -> tuple[list[Any], dict[str, int]]:
    image, dropped = [], Counter[str]()
    for block in blocks:
        if block.is_flag_set("NOISEADJSCAN"):
            kind: str | None = "noise"
        elif block.is_flag_set("PATREFSCAN") and not block.is_flag_set("PATREFANDIMASCAN"):
            kind = "calibration"
        else:
            kind = next((name for name, flag in _LEFT_OUT.items() if block.is_flag_set(flag)), None)
        if kind is None:
            image.append(block)
        else:
            dropped[kind] += 1
    return image, dict(dropped)


def _encoding(path: Path, protocol: Mapping[str, Any], image: list[Any]) -> Encoding:
    """The encoded space: 2x readout oversampling, lines of the protocol (at least those counted), partitions in 3D."""
    grid, first = protocol.get("sKSpace", {}), image[0].mdh
    slab = protocol["sSliceArray"]["asSlice"][0]
    base = int(grid["lBaseResolution"])
    samples = max(int(m.mdh.SamplesInScan) for m in image)
    nx = max(samples, 2 * max(int(first.CenterCol), samples - int(first.CenterCol)))
    ny = max(int(grid.get("lPhaseEncodingLines", 1)), 1 + max(m.cLin for m in image))
    nz = (
        max(int(grid.get("lPartitions", 1)), 1 + max(m.cPar for m in image))
        if int(grid.get("ucDimension", 2)) == 4
        else 1
    )
    read, phase = float(slab["dReadoutFOV"]), float(slab["dPhaseFOV"])
    thickness = float(slab.get("dThickness", nz))
    over = nx / base
    fov = (read * over, phase, thickness)
    return Encoding(
        (nx, ny, nz), fov, (base, ny, nz), (read, phase, thickness), (int(first.CenterLin), int(first.CenterPar))
    )


def _noise(scans: list[Any]) -> tuple[NDArray[np.complex64] | None, float]:
    for scan in scans:
        blocks = [m for m in scan.get("mdb", []) if m.is_flag_set("NOISEADJSCAN")]
        if blocks:
            dwell = scan["hdr"].get("MeasYaps", {}).get("sRXSPEC", {}).get("alDwellTime", [0])[0]
            return np.concatenate([np.asarray(m.data, np.complex64) for m in blocks], axis=1), float(dwell) / 1000
    return None, 0.0


def _readout(block: Any, protocol: Mapping[str, Any]) -> Readout:
    head = block.mdh
    pre, post = int(head.CutOff.Pre), int(head.CutOff.Post)
    samples = np.asarray(block.data, np.complex64)
    place = head.SliceData.SlicePos
    w, x, y, z = (float(q) for q in head.SliceData.Quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return Readout(
        samples[:, pre : samples.shape[1] - post],
        int(head.CenterCol) - pre,
        ky=block.cLin,
        kz=block.cPar,
        slice=block.cSlc,
        contrast=block.cEco,
        phase=block.cPhs,
        repetition=block.cRep,
        set=block.cSet,
        dwell_us=float(protocol.get("sRXSPEC", {}).get("alDwellTime", [0])[0]) / 1000,
        position=np.array([place.Sag, place.Cor, place.Tra], np.float64),
        directions=np.stack([-rotation[:, 1], -rotation[:, 0], rotation[:, 2]]),  # columns: phase, read, slice
    )
