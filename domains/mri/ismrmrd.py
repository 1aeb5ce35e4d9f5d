"""ISMRMRD (MRD) raw data in HDF5, by h5py alone (Inati et al., Magn Reson Med 77, 411, 2017).

A noise scan serves prewhitening. Lines with the flags of calibration only, navigators, phase correction, feedback, dummies
and reversed readouts are counted and left out: they are no image lines.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from domains.mri.containers import KSpace
from domains.mri.header import Header, parse_header
from domains.mri.lines import Encoding, Readout, along_trajectory, gridded, renumbered
from suite.errors import InputError

NOISE = 1 << 18
CALIBRATION = 1 << 19
REVERSE = 1 << 21
LEFT_OUT = {
    "calibration": CALIBRATION, "reverse": REVERSE, "navigator": 1 << 22, "phase correction": 1 << 23,
    "feedback": (1 << 25) | (1 << 27), "dummy": 1 << 26, "surface coil correction": 1 << 28,
    "phase stabilisation": (1 << 29) | (1 << 30),
}  # fmt: skip
"""Flag `n` of the standard is bit `n - 1`."""


def is_ismrmrd(file: h5py.File, key: str | None = None) -> bool:
    return _group(file, key) is not None


def _group(file: h5py.File, key: str | None) -> h5py.Group | None:
    groups = (
        [file[key]]
        if key is not None and key in file
        else []
        if key is not None
        else [file.get("dataset"), *file.values()]
    )
    for group in groups:
        if isinstance(group, h5py.Group) and "xml" in group and "data" in group:
            return group
    return None


def read_ismrmrd(path: Path, file: h5py.File, key: str | None = None) -> KSpace:
    """The first encoding of an ISMRMRD file.

    Raises:
        InputError: EPI, an unknown trajectory, no image line, or a header that does not fit the lines.
    """
    group = _group(file, key)
    if group is None:
        raise InputError(f"{path}: holds no ISMRMRD group with xml and data.")
    raw = np.asarray(group["xml"][()]).ravel()[0]
    header = parse_header(path, raw)
    if "epi" in header.trajectory:
        raise InputError(
            f"{path}: is an EPI scan, which needs a ghost correction that this version does not do; "
            "reconstruct it on the scanner or with a tool made for EPI."
        )
    if group["data"].dtype.names is None or not {"head", "data"} <= set(group["data"].dtype.names):
        raise InputError(f"{path}: its data are no table of acquisitions with the fields head and data.")
    table = group["data"][()]
    flags = table["head"]["flags"].astype(np.uint64)
    noise, noise_dwell = _noise(table, flags, header)
    chosen, dropped = _imaging(path, table, flags)
    readouts = renumbered([_readout(path, table[i]) for i in chosen])
    readouts, encoding = _rescaled(readouts, header.encoding)
    facts = {**header.facts, "trajectory": header.trajectory, "left_out": dropped, "noise_scan": noise is not None}
    if header.trajectory == "cartesian":
        return gridded(path, readouts, encoding, noise, noise_dwell, **facts)
    if header.encoding.matrix[2] > 1:
        raise InputError(
            f"{path}: is a 3D {header.trajectory} scan; 2D trajectories and Cartesian scans are supported."
        )
    return along_trajectory(path, readouts, encoding, noise, noise_dwell, **facts)


def _imaging(path: Path, table: NDArray[np.void], flags: NDArray[np.uint64]) -> tuple[list[int], dict[str, int]]:
    """Which acquisitions are image lines of the first encoding, and how many of which kind are not."""
    chosen: list[int] = []
    dropped: Counter[str] = Counter()
    spaces = table["head"]["encoding_space_ref"]
    for i, flag in enumerate(int(f) for f in flags):
        kind = "noise" if flag & NOISE else next((name for name, bits in LEFT_OUT.items() if flag & bits), None)
        if kind is None and spaces[i] != 0:
            kind = "other encoding"
        if kind is None:
            chosen.append(i)
        else:
            dropped[kind] += 1
    if dropped["reverse"] > 0.5 * len(chosen):
        raise InputError(
            f"{path}: {dropped['reverse']} of its lines are read in reverse, as in EPI, which needs a ghost correction that "
            "this version does not do."
        )
    return chosen, dict(dropped)


def _rescaled(readouts: list[Readout], encoding: Encoding) -> tuple[list[Readout], Encoding]:
    """Where the oversampling was removed before and the counters still speak of the longer readout, both made to agree."""
    if not readouts or any(r.center < r.samples.shape[1] for r in readouts):
        return readouts, encoding
    n = encoding.kept(0)
    share = n / encoding.matrix[0]
    fov = (encoding.fov_mm[0] * share, *encoding.fov_mm[1:])
    return (
        [replace(r, center=round(r.center * share)) for r in readouts],
        replace(encoding, matrix=(n, *encoding.matrix[1:]), fov_mm=fov),
    )


def _samples(path: Path | None, row: np.void) -> NDArray[np.complex64]:
    head = row["head"]
    coils, samples = int(head["active_channels"]), int(head["number_of_samples"])
    values = np.asarray(row["data"], np.float32)
    if values.size != 2 * coils * samples:
        raise InputError(
            f"{path}: an acquisition holds {values.size} numbers where its head promises 2 x {coils} x {samples}; "
            "the file is damaged."
        )
    return values.view(np.complex64).reshape(coils, samples)


def _noise(
    table: NDArray[np.void], flags: NDArray[np.uint64], header: Header
) -> tuple[NDArray[np.complex64] | None, float]:
    """The noise scan, at full receiver bandwidth, and its dwell time."""
    rows = [table[i] for i in np.flatnonzero(flags & np.uint64(NOISE))]
    if not rows:
        return None, 0.0
    coils = rows[-1]["head"]["active_channels"]
    samples = [_samples(None, row) for row in rows if row["head"]["active_channels"] == coils]
    noise = np.concatenate(samples, axis=1) / np.float32(np.sqrt(header.noise_bandwidth))
    return noise, float(rows[-1]["head"]["sample_time_us"])


def _readout(path: Path, row: np.void) -> Readout:
    head = row["head"]
    samples = _samples(path, row)
    pre, post = int(head["discard_pre"]), int(head["discard_post"])
    stop = samples.shape[1] - post
    trajectory = None
    dimensions = int(head["trajectory_dimensions"])
    if dimensions:
        trajectory = np.asarray(row["traj"], np.float32).reshape(-1, dimensions)[pre:stop, :2][:, ::-1]
    counters = head["idx"]
    directions = np.array([head["read_dir"], head["phase_dir"], head["slice_dir"]], np.float64)
    placed = bool(np.abs(directions).sum() > 0)
    return Readout(
        samples[:, pre:stop],
        int(head["center_sample"]) - pre,
        ky=int(counters["kspace_encode_step_1"]),
        kz=int(counters["kspace_encode_step_2"]),
        dwell_us=float(head["sample_time_us"]),
        position=np.asarray(head["position"], np.float64) if placed else None,
        directions=directions if placed else None,
        trajectory=trajectory,
        **{name: int(counters[name]) for name in ("slice", "contrast", "phase", "repetition", "set")},
    )
