"""Networks as diffusers and guided-diffusion publish them, with made-up weights.

reference/foreign.json holds what those two packages returned for the weights and inputs made here.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from suite.foreign.adm import load_adm
from suite.foreign.diffusers_unet import load_diffusers
from suite.prior import Prior

REFERENCE = json.loads((Path(__file__).parent / "reference" / "foreign.json").read_text())
SCHEDULER = {"beta_schedule": "linear"}


def made_up(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights that depend on names and shapes only (NumPy promises this generator's numbers for good)."""
    out = {}
    for name, shape in shapes.items():
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        values = values / math.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3 * values + name.endswith("weight")
        out[name] = torch.from_numpy(values).float()
    return out


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(7).standard_normal(shape)).float()


def card(channels: int = 1, **more: Any) -> dict[str, Any]:
    return {"unit": "HU", "scale": 500.0, "offset": 100.0, "channels": channels, **more}


def folder(path: Path, case: dict[str, Any], scheduler: dict[str, Any] | None = SCHEDULER, **config: Any) -> Path:
    """A diffusers folder as it is published."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"} | case["config"] | config))
    save_file(made_up(case["shapes"]), path / "diffusion_pytorch_model.safetensors")
    if scheduler is not None:
        (path / "scheduler").mkdir(exist_ok=True)
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


def diffusers_case(path: Path, number: int = 0) -> Prior:
    case = REFERENCE["diffusers"][number]
    return load_diffusers(folder(path / "unet2d", case), card(case["config"]["in_channels"]))


def adm_case(number: int = 0, **changes: Any) -> Prior:
    case = REFERENCE["adm"][number]
    return load_adm(made_up(case["shapes"]), case["config"] | changes, card(3))


def at(prior: Prior, timesteps: list[int]) -> Tensor:
    """Times of these timesteps, `(B, 1, 1, 1)`."""
    return (torch.tensor(timesteps, dtype=torch.float64) + 1).reshape(-1, 1, 1, 1) / prior.net.chain.steps
