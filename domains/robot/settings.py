"""Settings of `robot train`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from domains.robot.normalizer import Kind
from suite.config import Config
from suite.training import NoiseLevels


class SymmetryConfig(Config):
    """An affine map under which the task stays as it is; every training episode is used also as its image.

    Attributes:
        observation: `O` rows of `O + 1` numbers; the last one is added.
        action: `A` rows of `A + 1` numbers.
    """

    observation: list[list[float]]
    action: list[list[float]]


class DataConfig(Config):
    """What of the data is used, and how.

    Attributes:
        observation: names of the observation arrays; empty: those of the layout.
        fps: control rate in Hz, where the data do not tell it.
        angles: observation dimensions that are angles in radians.
        relative: points to be seen also from a moving body, each as the observation dimensions
            (point x, point y, body x, body y, body angle).
        position: for each action dimension, the observation dimension that measures it, if the policy shall start from there.
        commands: the command of the step before is part of the observation; when running, the policy fills in its own.
        symmetry: see `SymmetryConfig`.
        normalisation: `min-max` to [-1, 1], or `z-score`.
        held_out: every n-th episode is never trained on; 0: none.
    """

    observation: list[str] = Field(default_factory=list)
    fps: float | None = Field(default=None, gt=0)
    angles: list[int] = Field(default_factory=list)
    relative: list[tuple[int, int, int, int, int]] = Field(default_factory=list)
    position: list[int] | None = None
    commands: bool = False
    symmetry: SymmetryConfig | None = None
    normalisation: Kind = "min-max"
    held_out: int = Field(default=10, ge=0)


class NetworkConfig(Config):
    """`mlp` (width, blocks), `unet` (channels), or `mode` (width, blocks, heads, experts).

    Attributes:
        heads: of the attention.
        experts, active: feed-forward experts of a block, and how many of them a noise level uses.
        balance: weight of the experts' load balance in the training loss.
    """

    kind: Literal["mlp", "unet", "mode"] = "mlp"
    width: int = Field(default=384, ge=8)
    blocks: int = Field(default=4, ge=1)
    channels: list[int] = Field(default_factory=lambda: [64, 128, 256])
    features: int = Field(default=64, ge=2)
    heads: int = Field(default=4, ge=1)
    experts: int = Field(default=4, ge=1)
    active: int = Field(default=2, ge=1)
    balance: float = Field(default=0.01, ge=0)

    def settings(self) -> dict[str, Any]:
        """Arguments of the backbone."""
        names: dict[str, tuple[str, ...]] = {
            "mlp": ("width", "blocks"),
            "unet": ("channels",),
            "mode": ("width", "blocks", "heads", "experts", "active", "balance"),
        }
        return {name: getattr(self, name) for name in (*names[self.kind], "features")}


class VisionConfig(Config):
    """Cameras, and the network that sees them (domains/robot/vision.py).

    Attributes:
        cameras: names of the pictures' arrays, columns or features; empty: none.
        size: height and width to which pictures are reduced.
        channels: of the stem and of each residual block.
        points: that the network finds in a picture.
        shift: in training, pictures are shifted by up to so many pixels.
    """

    cameras: list[str] = Field(default_factory=list)
    size: int = Field(default=64, ge=8, le=512)
    channels: list[int] = Field(default_factory=lambda: [32, 64, 64])
    points: int = Field(default=32, ge=1)
    shift: int = Field(default=4, ge=0)

    def settings(self) -> dict[str, Any] | None:
        """Arguments of the encoder; None: there is none."""
        return self.model_dump(exclude={"shift"}) if self.cameras else None


class StreamConfig(Config):
    """Training for the streaming sampler: noise that rises along the chunk (Hoeg et al. 2024).

    Attributes:
        share: of the examples with one level per `stride` actions; 0: the network knows one level per chunk only.
        stride: actions that leave the buffer together; divides the horizon.
    """

    share: float = Field(default=0.0, ge=0, le=1)
    stride: int = Field(default=4, ge=1)


class RobotTrainingConfig(Config):
    """Settings of `robot train`.

    Attributes:
        linear: the network makes only what a linear regression on the observations leaves of a chunk.
        anchors: chunks kept for the anchored sampler, the centres of as many clusters of the training chunks; 0: none.
        mixed_precision: bfloat16 where the processor or GPU has it.
    """

    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    vision: VisionConfig = VisionConfig()
    process: str = "vp-cosine"
    head: Literal["edm", "eps", "x0", "v", "flow"] = "edm"
    noise: NoiseLevels = NoiseLevels(mean=-0.9, std=1.4, low=0.01, high=40.0)
    linear: bool = False
    stream: StreamConfig = StreamConfig()
    horizon: int = Field(default=16, ge=2)
    execute: int = Field(default=8, ge=1)
    observation_steps: int = Field(default=2, ge=1)
    anchors: int = Field(default=20, ge=0)
    batch: int = Field(default=256, ge=1)
    iterations: int = Field(default=20000, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=300, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    mixed_precision: bool = True
    seed: int = Field(default=0, ge=0, lt=2**63)
    name: str | None = None
    description: str = "A diffusion policy trained on demonstrations."
    licence: str = "as the demonstrations it was trained on"
    limits: list[str] = Field(default_factory=lambda: ["Not a safety device: the guard's limits must fit the robot."])
