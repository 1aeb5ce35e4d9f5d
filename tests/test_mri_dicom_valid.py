"""Derived MR series before an independent validator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from domains.mri.containers import Volume
from domains.mri.dicom_write import Derivation, write_series


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("part", ["M", "P", "STD"])
@pytest.mark.parametrize("shape", [(2, 12, 16), (2, 2, 12, 16)])
def test_the_validator_finds_no_error(tmp_path: Path, part: str, shape: tuple[int, ...]) -> None:
    affine = np.array([[-1.2, 0, 0, 9], [0, -1.2, 0, 7], [0, 0, 4.0, -30], [0, 0, 0, 1]])
    values = np.random.default_rng(0).uniform(-3 if part == "P" else 0, 3, shape).astype(np.float32)
    made = Derivation("DIFFSUITE test", "dds; 20 evaluations", "0.1", model="mri sha256 abc", part=part)
    for path in write_series(Volume(values, affine), tmp_path / "out", made):
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
        assert "MRImage" in told
        assert [line for line in told.splitlines() if line.startswith("Error")] == []
