"""DNSMOS P.835 without a reference (Reddy, Gopal and Cutler 2022), by the ONNX model that the user supplies."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.speech.resampling import resample
from suite.errors import InputError
from suite.files import existing

Array = NDArray[np.float32]

RATE = 16000
SAMPLES = 144160
"""Of the model's window: 9.01 s."""
FITS = {
    "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos_ovr": (-0.06766283, 1.11546468, 0.04602535),
}
"""Polynomials from the model's answers to the scale of the listening tests, as published with sig_bak_ovr.onnx."""


class Dnsmos:
    """Predicts the mean opinion of speech, background and the whole, 1 to 5.

    Args:
        path: the model sig_bak_ovr.onnx of the DNS Challenge.

    Raises:
        InputError: onnxruntime is not installed, or the file is no such model.
    """

    def __init__(self, path: Path) -> None:
        existing(path)
        if importlib.util.find_spec("onnxruntime") is None:
            raise InputError(f"--dnsmos {path}: needs the package onnxruntime; install it with pip install onnxruntime")
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            (given,) = self.session.get_inputs()
        except Exception as error:  # onnxruntime's own errors share no base class
            raise InputError(f"{path}: is not the ONNX model sig_bak_ovr.onnx ({type(error).__name__})") from error
        if len(given.shape) != 2 or (given.shape[1] not in (SAMPLES, None) and not isinstance(given.shape[1], str)):
            raise InputError(
                f"{path}: takes {given.shape}, not windows of {SAMPLES} samples; sig_bak_ovr.onnx is needed"
            )
        self.input = given.name

    def __call__(self, x: Array, rate: int) -> dict[str, float | None]:
        """Scores of samples `(n,)`, the mean over windows a second apart; short recordings are repeated."""
        low = resample(x, rate, RATE)
        if not np.any(low):
            return dict.fromkeys(FITS)
        while len(low) < SAMPLES:
            low = np.concatenate([low, low])
        count = 1 + (len(low) - SAMPLES) // RATE
        windows = [low[k * RATE : k * RATE + SAMPLES][None].astype(np.float32) for k in range(count)]
        raw = np.stack([self.session.run(None, {self.input: window})[0][0] for window in windows], axis=1)
        return {name: float(np.polyval(fit, row).mean()) for (name, fit), row in zip(FITS.items(), raw, strict=True)}
