"""Priors from guided-diffusion (Dhariwal and Nichol 2021, ADM) and its many descendants: unconditional `UNetModel`s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from suite.errors import InputError
from suite.foreign.card import assemble, faults_in, read_mapping, read_weights
from suite.foreign.chain import Chain, ChainNetwork
from suite.foreign.unet import Layout
from suite.prior import Prior

_MULTIPLES: dict[int, list[float]] = {
    512: [0.5, 1, 1, 2, 2, 4, 4],
    256: [1, 1, 2, 2, 4, 4],
    128: [1, 1, 2, 3, 4],
    64: [1, 2, 3, 4],
}


class ADMConfig(BaseModel):
    """The flags a model was trained with, by their published names and defaults; lists may be comma-separated words.

    Flags of training and sampling that do not change the network are accepted and not used. `class_cond` must be false.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    image_size: int = Field(default=64, ge=1)
    num_channels: int = Field(default=128, ge=1)
    num_res_blocks: int = Field(default=2, ge=1)
    channel_mult: list[float] = []
    attention_resolutions: list[int] = [16, 8]
    num_heads: int = Field(default=4, ge=1)
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    class_cond: Literal[False] = False
    diffusion_steps: int = Field(default=1000, ge=2)
    noise_schedule: Literal["linear", "cosine"] = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False
    dropout: float = 0.0
    use_checkpoint: bool = False
    use_fp16: bool = False
    timestep_respacing: str | int = ""
    use_kl: bool = False
    rescale_learned_sigmas: bool = False

    @field_validator("channel_mult", "attention_resolutions", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return [word for word in str(value).split(",") if word] if isinstance(value, (str, int)) else value

    @model_validator(mode="after")
    def _sizes(self) -> ADMConfig:
        if not self.channel_mult and self.image_size not in _MULTIPLES:
            raise ValueError(f"channel_mult is needed for an image_size other than {', '.join(map(str, _MULTIPLES))}")
        if any(n < 1 or n > self.image_size for n in self.attention_resolutions):
            raise ValueError(f"attention_resolutions must lie between 1 and image_size = {self.image_size}")
        attending = [w for w, attends in zip(self.widths, self.attends, strict=True) if attends] + self.widths[-1:]
        if self.num_head_channels > 0 and any(width % self.num_head_channels for width in attending):
            raise ValueError(f"{attending} channels do not divide into attention heads of {self.num_head_channels}")
        return self

    @property
    def widths(self) -> list[int]:
        return [int(multiple * self.num_channels) for multiple in self.channel_mult or _MULTIPLES[self.image_size]]

    @property
    def attends(self) -> list[bool]:
        return [
            2**level in {self.image_size // n for n in self.attention_resolutions} for level in range(len(self.widths))
        ]

    def layout(self, channels: int) -> Layout:
        """The same network in this suite's terms; variance channels (`learn_sigma`) are left out."""

        def heads(width: int, number: int) -> int:
            return width // self.num_head_channels if self.num_head_channels > 0 else number

        number_up = self.num_heads if self.num_heads_upsample == -1 else self.num_heads_upsample
        return Layout(
            in_channels=channels,
            out_channels=channels,
            widths=self.widths,
            blocks=self.num_res_blocks,
            down_heads=[a * heads(w, self.num_heads) for a, w in zip(self.attends, self.widths, strict=True)],
            up_heads=[a * heads(w, number_up) for a, w in zip(self.attends, self.widths, strict=True)],
            middle_heads=heads(self.widths[-1], self.num_heads),
            down_residual=[self.resblock_updown] * len(self.widths),
            up_residual=[self.resblock_updown] * len(self.widths),
            frequencies=self.num_channels,
            embedding=4 * self.num_channels,
            scale_shift=self.use_scale_shift_norm,
        )

    def chain(self) -> Chain:
        """Rates 1e-4 .. 0.02 for 1000 steps, scaled for other numbers of steps."""
        scale = 1000 / self.diffusion_steps
        return Chain(
            schedule=self.noise_schedule,
            steps=self.diffusion_steps,
            beta_start=1e-4 * scale,
            beta_end=0.02 * scale,
            timestep_scale=scale if self.rescale_timesteps else 1.0,
        )


def load_adm(
    weights: Path | Mapping[str, Tensor],
    config: Path | Mapping[str, Any],
    card: Path | Mapping[str, Any],
    name: str = "the ADM network",
) -> Prior:
    """A prior from a guided-diffusion `UNetModel`; `Prior.save` makes a file of it that `load_prior` reads.

    Args:
        weights: safetensors file of the state dict, or the state dict.
        config: the flags it was trained with (`ADMConfig`), YAML or a mapping.
        card: at least unit, scale, offset and channels; YAML or a mapping (`suite.foreign.card.ForeignCard`).
        name: of a state dict that comes from no file.

    Raises:
        InputError: a file is missing, damaged or a pickle; a conditional network; flags, weights or card do not fit.
    """
    if isinstance(weights, Path):
        state, name = read_weights(weights), str(weights)
    else:
        state = dict(weights)
    flags, where = read_mapping(config)
    if "label_emb.weight" in state:
        raise InputError(f"{name} is conditioned on a class, and this suite runs unconditional networks only")
    if "input_blocks.0.0.weight" not in state:
        raise InputError(
            f"{name} has no input_blocks.0.0.weight; it is not the state dict of a guided-diffusion UNetModel"
        )
    channels = state["input_blocks.0.0.weight"].shape[1]
    with faults_in(where):
        settings = ADMConfig.model_validate(flags)
        layout, chain = settings.layout(channels), settings.chain()
    net = ChainNetwork(layout, chain, "x0" if settings.predict_xstart else "eps")
    return assemble(net, translate(state, settings, layout, name), card, name, settings.image_size)


# --- names of the weights ---------------------------------------------------------------------------------------------

_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "embed",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "proj_out": "out"}


def _blocks(layout: Layout) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Every block: its published prefix, its name in suite/foreign/unet.py, and its layers' names."""
    last = len(layout.widths) - 1
    yield "time_embed", "embed", {"0": "0", "2": "2"}
    yield "input_blocks.0", "head", {"0": ""}
    at = 0
    for i, heads in enumerate(layout.down_heads):
        for j in range(layout.blocks):
            at += 1
            yield f"input_blocks.{at}.0", f"down.{i}.res.{j}", _RESIDUAL
            if heads:
                yield f"input_blocks.{at}.1", f"down.{i}.att.{j}", _ATTENTION
        if i < last:
            at += 1
            yield f"input_blocks.{at}.0", f"down.{i}.resize", _RESIDUAL if layout.down_residual[i] else {"op": "conv"}
    yield "middle_block.0", "mid.res.0", _RESIDUAL
    yield "middle_block.1", "mid.att.0", _ATTENTION
    yield "middle_block.2", "mid.res.1", _RESIDUAL
    at = -1
    for i, heads in enumerate(reversed(layout.up_heads)):
        for j in range(layout.blocks + 1):
            at += 1
            yield f"output_blocks.{at}.0", f"up.{i}.res.{j}", _RESIDUAL
            if heads:
                yield f"output_blocks.{at}.1", f"up.{i}.att.{j}", _ATTENTION
        if i < last:
            residual = layout.up_residual[last - i]
            yield (
                f"output_blocks.{at}.{2 if heads else 1}",
                f"up.{i}.resize",
                _RESIDUAL if residual else {"conv": "conv"},
            )
    yield "out", "tail", {"0": "_norm", "2": ""}


def translate(state: Mapping[str, Tensor], config: ADMConfig, layout: Layout, source: str) -> dict[str, Tensor]:
    """Published names to those of suite/foreign/unet.py; queries, keys and values put in order, variances dropped.

    Raises:
        InputError: the last layer has not the number of channels that `learn_sigma` says.
    """
    names: dict[str, str] = {}
    for old, new, layers in _blocks(layout):
        for theirs, ours in layers.items():
            target = new + ours if new == "tail" else f"{new}.{ours}".rstrip(".")
            names |= {f"{old}.{theirs}.{kind}": f"{target}.{kind}" for kind in ("weight", "bias")}
    out = {names.get(key, key): value for key, value in state.items()}
    for key in out.keys() & {name for name in names.values() if ".att." in name}:
        out[key] = out[key].squeeze(2) if out[key].ndim == 3 else out[key]  # a convolution of one pixel: a linear layer
        if ".qkv." in key and not config.use_new_attention_order:
            out[key] = _in_order(out[key], _heads(layout, key))
    expected = layout.out_channels * (1 + config.learn_sigma)
    for key in out.keys() & {"tail.weight", "tail.bias"}:
        if len(out[key]) != expected:
            raise InputError(
                f"{source} returns {len(out[key])} channels; its learn_sigma = {config.learn_sigma} says {expected}"
            )
        out[key] = out[key][: layout.out_channels]
    return out


def _heads(layout: Layout, key: str) -> int:
    part, level = key.split(".")[:2]
    if part == "mid":
        return layout.middle_heads
    return layout.down_heads[int(level)] if part == "down" else layout.up_heads[-1 - int(level)]


def _in_order(value: Tensor, heads: int) -> Tensor:
    """Legacy rows (head, q|k|v, channel) to (q|k|v, head, channel)."""
    if len(value) % (3 * heads):
        return value  # the wrong shape: told with the others
    return value.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
