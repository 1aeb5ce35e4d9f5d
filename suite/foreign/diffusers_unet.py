"""Priors from diffusers: the folder of an unconditional `UNet2DModel` in pixel space."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from suite.errors import InputError
from suite.foreign.card import assemble, faults_in, read_weights
from suite.foreign.chain import Chain, ChainNetwork
from suite.foreign.unet import Layout
from suite.prior import Prior

Down = Literal["DownBlock2D", "AttnDownBlock2D"]
Up = Literal["UpBlock2D", "AttnUpBlock2D"]

_WEIGHTS = "diffusion_pytorch_model"
_HEADS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


class UNetConfig(BaseModel):
    """`config.json` of a `UNet2DModel`, its published defaults; what this suite does not run has one value."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    in_channels: int = 3
    out_channels: int = 3
    sample_size: int | tuple[int, int] | None = None
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: list[Down] = ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
    mid_block_type: Literal["UNetMidBlock2D"] | None = "UNetMidBlock2D"
    up_block_types: list[Up] = ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    block_out_channels: list[int] = [224, 448, 672, 896]
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: int | None = Field(default=8, ge=1)
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: None = None

    @model_validator(mode="after")
    def _fits(self) -> UNetConfig:
        if not len(self.block_out_channels) == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError("block_out_channels, down_block_types and up_block_types need one value per level each")
        for width in self.block_out_channels:
            if self.attention_head_dim is not None and width % self.attention_head_dim:
                raise ValueError(f"{width} channels do not divide into attention heads of {self.attention_head_dim}")
        return self

    def layout(self) -> Layout:
        """The same network in this suite's terms."""
        widths, shift = self.block_out_channels, self.resnet_time_scale_shift
        heads = [width // (self.attention_head_dim or width) for width in widths]
        down = [kind == "AttnDownBlock2D" for kind in self.down_block_types]
        up = [kind == "AttnUpBlock2D" for kind in reversed(self.up_block_types)]
        return Layout(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            widths=widths,
            blocks=self.layers_per_block,
            down_heads=[n * attends for n, attends in zip(heads, down, strict=True)],
            up_heads=[n * attends for n, attends in zip(heads, up, strict=True)],
            middle=self.mid_block_type is not None,
            middle_heads=heads[-1] * self.add_attention,
            down_residual=[attends and self.downsample_type == "resnet" for attends in down],
            up_residual=[attends and self.upsample_type == "resnet" for attends in up],
            frequencies=widths[0],
            cosine_first=self.flip_sin_to_cos,
            frequency_shift=self.freq_shift,
            embedding=self.time_embedding_dim or 4 * widths[0],
            groups=self.norm_num_groups,
            middle_groups=self.attn_norm_num_groups or (self.norm_num_groups if shift == "default" else None),
            eps=self.norm_eps,
            scale_shift=shift == "scale_shift",
            symmetric=self.downsample_padding == 1,
            middle_divisor=self.mid_block_scale_factor,
        )


class SchedulerConfig(BaseModel):
    """`scheduler_config.json`, what the network's training shows of it; `beta_schedule` is required."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    num_train_timesteps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    beta_start: float = 1e-4
    beta_end: float = 0.02
    trained_betas: list[float] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: Literal[False] = False

    def chain(self) -> Chain:
        """The same chain in this suite's terms."""
        return Chain(
            schedule="cosine" if self.beta_schedule == "squaredcos_cap_v2" else self.beta_schedule,
            steps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            betas=self.trained_betas,
        )


def load_diffusers(folder: Path, card: Path | Mapping[str, Any], scheduler: Mapping[str, Any] | None = None) -> Prior:
    """A prior from a diffusers folder; `Prior.save` makes a file of it that `load_prior` reads.

    Args:
        folder: of the `UNet2DModel` (`config.json`, `diffusion_pytorch_model.safetensors`), or of a pipeline that has
            it in `unet/`; its noise schedule is a `scheduler_config.json` there or in `scheduler/`.
        card: at least unit, scale, offset and channels; YAML or a mapping (`suite.foreign.card.ForeignCard`).
        scheduler: the fields of `scheduler_config.json`, for a folder that has none.

    Raises:
        InputError: a file is missing, damaged or a pickle; blocks or conditions this suite does not run; no schedule;
            weights or card that do not fit.
    """
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    settings = _json(inner / "config.json")
    if settings.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise InputError(
            f"{inner / 'config.json'} describes a {settings['_class_name']}; only a UNet2DModel is read here"
        )
    with faults_in(inner / "config.json"):
        config = UNetConfig.model_validate(settings)
        layout = config.layout()
    fields, where = _scheduler(folder, inner) if scheduler is None else (dict(scheduler), "the scheduler")
    with faults_in(where):
        schedule = SchedulerConfig.model_validate(fields)
        chain = schedule.chain()
    net = ChainNetwork(layout, chain, _HEADS[schedule.prediction_type])
    pickled = not (inner / f"{_WEIGHTS}.safetensors").exists() and (inner / f"{_WEIGHTS}.bin").exists()
    weights = translate(read_weights(inner / f"{_WEIGHTS}{'.bin' if pickled else '.safetensors'}"))
    return assemble(net, weights, card, str(folder), config.sample_size)


def _scheduler(folder: Path, inner: Path) -> tuple[dict[str, Any], str]:
    names = ("scheduler/scheduler_config.json", "scheduler_config.json")
    for path in (root / name for root in (folder, inner) for name in names):
        if path.is_file():
            return _json(path), str(path)
    raise InputError(f"there is no {names[0]} in {folder}; pass `scheduler`, the noise schedule it was trained with")


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path} is not valid JSON") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a {type(data).__name__}; expected a mapping of settings")
    return data


# --- names of the weights ---------------------------------------------------------------------------------------------

_NAMES = (
    (r"^conv_in\.", "head."),
    (r"^conv_norm_out\.", "tail_norm."),
    (r"^conv_out\.", "tail."),
    (r"^time_embedding\.linear_([12])\.", lambda m: f"embed.{2 * int(m[1]) - 2}."),
    (r"^(down|up)_blocks\.(\d+)\.", r"\1.\2."),
    (r"^mid_block\.", "mid."),
    (r"\.resnets\.", ".res."),
    (r"\.attentions\.", ".att."),
    (r"\.(down|up)samplers\.0\.", ".resize."),
    (r"\.time_emb_proj\.", ".embed."),
    (r"\.conv_shortcut\.", ".skip."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(query|to_q)\.", ".q."),
    (r"\.(key|to_k)\.", ".k."),
    (r"\.(value|to_v)\.", ".v."),
    (r"\.(proj_attn|to_out\.0)\.", ".out."),
)


def translate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names (of both generations of attention layers) to those of suite/foreign/unet.py."""
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        out[name] = value.flatten(1) if re.search(r"\.att\.\d+\.(q|k|v|out)\.weight$", name) else value
    for name in [n for n in out if re.search(r"\.att\.\d+\.q\.", n)]:
        parts = [name.replace(".q.", f".{part}.") for part in "qkv"]
        if all(part in out for part in parts):
            out[name.replace(".q.", ".qkv.")] = torch.cat([out.pop(part) for part in parts])
    return out
