"""What the tests of the CT verbs share: a small phantom on disk, a tiny prior, and calls of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from cli import main
from suite.network import Preconditioned, UNet
from suite.prior import Card, Prior

AFFINE = np.array([[-2.0, 0, 0, 37], [0, -2.0, 0, 81], [0, 0, 3.0, -60], [0, 0, 0, 1]])
"""Voxel to RAS mm of the phantom: 2 mm pixels, 3 mm slices, off centre, in LPS order."""


def phantom_hu(slices: int = 3, side: int = 48) -> np.ndarray:
    """Float HU `(z, y, x)`: a water disc in air with a dense and a light insert that move from slice to slice."""
    z, y, x = np.ogrid[:slices, :side, :side]
    u, v = (x - (side - 1) / 2) / side, (y - (side - 1) / 2) / side
    hu = np.where(u**2 + v**2 < 0.4**2, 0.0, -1000.0) + 0.0 * z
    hu = np.where((u - 0.15) ** 2 + (v + 0.02 * z) ** 2 < 0.08**2, 300.0, hu)
    return np.where((u + 0.15) ** 2 + (v - 0.1) ** 2 < 0.08**2, -150.0, hu)


def write_phantom(path: Path, hu: np.ndarray | None = None) -> Path:
    data = phantom_hu() if hu is None else hu
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data.transpose(2, 1, 0), dtype=np.float32), AFFINE), path)
    return path


def save_prior(path: Path, **changes: Any) -> Path:
    """A prior with random weights: everything a prior has but knowledge."""
    torch.manual_seed(0)
    net = UNet(1, 1, [8, 8], blocks=1, features=8)
    card = {
        "name": "random", "domain": "ct", "description": "", "unit": "HU", "scale": 1000.0, "offset": 0.0,
        "value_range": (-1024.0, 3071.0), "network": net.settings, "process": "edm", "sigma_data": 0.5,
        "sigma_range": (1e-3, 50.0), "data": ["a"], "validation_data": ["b"], "licence": "CC0", "training": {},
        "validation": {},
    }  # fmt: skip
    Prior(Preconditioned(net, 0.5, (1e-3, 50.0)), Card(**card | changes)).save(path)
    return path


def ct(*words: str | Path) -> int:
    return main(["ct", *map(str, words)])


def simulated(folder: Path, *words: str, volume: Path | None = None) -> Path:
    """`scan.h5` of the phantom (or `volume`), 24 views."""
    source = volume or write_phantom(folder / "phantom.nii.gz")
    assert ct("simulate", source, "-o", folder / "scan.h5", "--views", "24", "--quiet", *words) == 0
    return folder / "scan.h5"


def image(path: Path) -> np.ndarray:
    """Voxels `(z, y, x)` of a NIfTI file in the order they are stored."""
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))
