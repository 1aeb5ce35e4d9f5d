"""Change of sampling rate: soxr (the default), SciPy, or torchaudio where it can be loaded.

torchaudio's wheel is tied to one build of PyTorch and fails to load beside another, with any of three exceptions. This
module alone imports it; everything else of speech runs without it.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from math import gcd
from types import ModuleType
from typing import Literal

import numpy as np
import scipy.signal
import soxr
import torch
from numpy.typing import NDArray

from suite.errors import InputError

Backend = Literal["auto", "soxr", "scipy", "torchaudio"]


@lru_cache(maxsize=1)
def torchaudio_status() -> tuple[ModuleType | None, str]:
    """`(module, "")`, or `(None, why it cannot be used)`. Cached, since a failed import leaves half a package behind."""
    try:
        return importlib.import_module("torchaudio"), ""
    except ModuleNotFoundError as error:
        if error.name == "torchaudio":
            return None, "torchaudio is not installed"
        return None, f"torchaudio cannot be loaded: {error}"
    except (ImportError, OSError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        return None, f"torchaudio does not fit this PyTorch ({first}); install both from the same PyTorch index"


def resample(x: NDArray[np.float32], old: int, new: int, backend: Backend = "auto") -> NDArray[np.float32]:
    """Samples `(n, channels)` or `(n,)` at `old` Hz to `ceil(n new / old)` samples at `new` Hz.

    Args:
        backend: `auto` is soxr at its very high quality. The others differ at the band's edge: by about -45 dB (torchaudio,
            Kaiser window) and -30 dB (scipy).

    Raises:
        InputError: torchaudio is asked for and cannot be used.
    """
    count = -(-len(x) * new // old)
    if old == new:
        return x
    if backend == "torchaudio":
        out = _torchaudio(x, old, new)
    elif backend == "scipy":
        common = gcd(old, new)
        out = scipy.signal.resample_poly(x, new // common, old // common, axis=0).astype(np.float32)
    else:
        out = np.asarray(soxr.resample(x, old, new, quality="VHQ"), dtype=np.float32)
    short = [(0, max(0, count - len(out)))] + [(0, 0)] * (x.ndim - 1)
    fitted: NDArray[np.float32] = np.pad(out, short)[:count]
    return fitted


def _torchaudio(x: NDArray[np.float32], old: int, new: int) -> NDArray[np.float32]:
    module, reason = torchaudio_status()
    if module is None:
        raise InputError(f"resampling by torchaudio was asked for, but {reason}; use soxr or scipy")
    settings = {"lowpass_filter_width": 64, "rolloff": 0.9475937167399596, "beta": 14.769656459379492}
    moved = torch.from_numpy(np.ascontiguousarray(x.T))
    out = module.functional.resample(moved, old, new, resampling_method="sinc_interp_kaiser", **settings)
    result: NDArray[np.float32] = out.numpy().T
    return result
