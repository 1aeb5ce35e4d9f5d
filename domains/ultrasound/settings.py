"""The settings of a run, and the networks they call for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from domains.ultrasound.classical import CLASSICAL
from domains.ultrasound.grid import BLOCK
from domains.ultrasound.live import Video
from domains.ultrasound.separation import JOINT
from domains.ultrasound.training import UNITS, Kind
from suite.config import Config, MainConfig
from suite.errors import InputError
from suite.prior import Prior, load_prior

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED: dict[str, Path] = {kind: WEIGHTS / f"echo-{kind}.safetensors" for kind in UNITS}
SECOND = WEIGHTS / "echo-restore-clutter.safetensors"
"""Another restoration network, trained on the published shapes of clutter alone; their single estimates are averaged."""

Method = Literal["restore", "regenerate", "pigdm", "dps", "projection", "nuclear", "background", "svd", "rpca"]
RESIDUAL = ("restore", "regenerate")


Level = Annotated[float, Field(ge=0, le=255)]


class InputSettings(Config):
    """What the file does not tell.

    Attributes:
        domain: of the samples; None: as the file says or its values suggest.
        dynamic_range_db: of the log compression; None: the file's own, or 60.
        angles_deg: first and last beam of echoes not yet scan converted, from the vertical; None: as the file says, or parallel.
        apex: of such echoes, distance of the first sample from the point where the beams meet, over the length of a beam.
    """

    domain: Literal["grey", "envelope", "rf", "iq"] | None = None
    dynamic_range_db: float | None = Field(default=None, gt=0, le=200)
    angles_deg: tuple[float, float] | None = None
    apex: float = Field(default=0.0, ge=0, le=100)


class DehazeConfig(MainConfig):
    """Settings of `ultrasound dehaze`.

    Attributes:
        method: `restore` (default), `regenerate` (predict, then regenerate), `pigdm`, `dps`, `projection` (joint posterior with two
            priors), `nuclear` (tissue prior, haze of low rank), or without a network `background`, `svd`, `rpca`.
        strength: of the joint methods gamma, the weight of the haze in the sum; of the others, multiplies the haze before it is
            taken off.
        video: how frames of a sampling method hang together: `shared` noise, or one after the other as in a live cine, `warm` or
            `rolling` (`domains.ultrasound.live`).
        window: frames around each over which `restore` looks for what does not move.
        threshold: of `restore`, grey levels of 255 that its estimates are lowered by: so little is no haze.
        certain: of `restore`, grey levels of 255: estimates count in full near one that reaches the second, and not at all where
            none near reaches the first; 0, 0: all count.
        haze_prior: of the joint methods, the second prior's file; `prior` is the tissue's.
        begin: of the joint methods and `nuclear`, the estimate to start from: the shipped `restore` network's (predict, then
            regenerate), or the classical `background`.
        noise_std: of these, what neither signal explains, on the companded scale 0..1.
        batch: frames that go through the network together.
        input: what the file does not tell.
        options: arguments of a joint method or of `nuclear`, e.g. `options.strength=1.0`.
    """

    method: Method | None = None
    strength: float = Field(default=1.0, ge=0, le=10)
    video: Video = "shared"
    window: int = Field(default=21, ge=1)
    threshold: float = Field(default=3.0, ge=0, le=255)
    certain: tuple[Level, Level] = (30.0, 60.0)
    haze_prior: Path | None = None
    begin: Literal["restore", "background"] = "restore"
    noise_std: float = Field(default=0.05, gt=0)
    batch: int = Field(default=25, ge=1)
    input: InputSettings = InputSettings()
    options: dict[str, Any] = Field(default_factory=dict)


def choose_method(config: DehazeConfig) -> Method:
    """The method of a run.

    Raises:
        InputError: several samples of a method whose spread is no uncertainty, or a way through the cine it cannot go.
    """
    name: Method = config.method or "restore"
    if config.samples > 1 and (name != "restore" or config.video != "shared"):
        how = name if config.video == "shared" else f"{name} with video={config.video}"
        raise InputError(
            f"{how} is a point estimator here, whose spread is no uncertainty; with --samples {config.samples} use restore"
        )
    if config.video != "shared" and not (name == "restore" or name in JOINT):
        raise InputError(
            f"{name} takes the frames of a cine together; video={config.video} is for restore, pigdm, dps and projection"
        )
    if config.certain[1] <= config.certain[0] != 0:
        raise InputError(f"certain={list(config.certain)}: the second grey level must lie above the first")
    if config.video != "shared" and config.begin != "restore":
        raise InputError(f"video={config.video} starts from the restoration network; leave out begin={config.begin}")
    return name


def load_priors(method: str, config: DehazeConfig, device: torch.device) -> dict[str, Prior]:
    """The networks of a method: the named ones, or the shipped ones, checked for what they are.

    Single estimates are those of two shipped networks, unless the number of evaluations is bounded or one is named.
    """
    if method in CLASSICAL:
        return {}
    files: dict[str, tuple[Kind, Path | None]] = {"tissue": ("tissue", config.prior)}
    if method in RESIDUAL:
        files = {"restore": ("restore", config.prior)}
    elif method in JOINT:
        files["haze"] = ("haze", config.haze_prior)
    if method not in RESIDUAL and config.begin == "restore":
        files["restore"] = ("restore", None)
    alone = config.steps is not None or config.samples > 1 or method == "regenerate"
    if not alone and files.get("restore") == ("restore", None):
        files["second"] = ("restore", SECOND)
    return {
        name: load_prior(file or SHIPPED[kind], device, unit=UNITS[kind], channels=BLOCK**2)
        for name, (kind, file) in files.items()
    }
