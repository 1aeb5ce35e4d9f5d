"""The policy file: weights, statistics, a self-test and the card, in one safetensors file with a checksum over all.

Tensors: `net.*` in half precision, `normalizer.*` (domains/robot/normalizer.py), `calibration.*`
(domains/robot/calibration.py), `anchors` where there are any, `selftest.*` (observation and noise in, chunk out).
Metadata: `card` (JSON) and `checksum` (SHA-256 over card and tensors).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from domains.robot.calibration import Calibration
from domains.robot.containers import Cameras
from domains.robot.network import ActionNetwork
from domains.robot.normalizer import Normalizer
from domains.robot.origin import Origin
from domains.robot.samplers import SAMPLERS, WARM_RATIO, Sampler
from suite.errors import InputError
from suite.files import atomic_file
from suite.process import process

WEIGHTS = Path(__file__).parent / "weights"
CALIBRATION = ("calibration.ratio", "calibration.limit")
SELFTEST = ("selftest.observation", "selftest.noise", "selftest.chunk")
PICTURES = "selftest.pictures"
ORIGIN = ("origin.weight", "origin.bias")
SELFTEST_STEPS = 5
TOLERANCE = 1e-3  # of the self-test, in network units


class PolicyCard(BaseModel):
    """What a policy is, what it was trained on, and what it must not be used for."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str
    domain: Literal["robot"] = "robot"
    description: str
    observation: list[str]
    action: list[str]
    position: list[int] | None = None
    commands: bool = False
    linear: bool = False
    fps: float = Field(gt=0)
    horizon: int = Field(ge=2)
    execute: int = Field(ge=1)
    observation_steps: int = Field(ge=1)
    stride: int | None = None
    normalisation: Literal["min-max", "z-score"]
    architecture: str
    network: dict[str, Any]
    vision: dict[str, Any] | None = None
    process: str
    process_parameters: dict[str, float] = {}
    head: str
    sigma_data: float = Field(gt=0)
    sigma_range: tuple[float, float]
    data: dict[str, Any]
    validation_episodes: list[int]
    licence: str
    training: dict[str, Any]
    validation: dict[str, Any]
    limits: list[str]

    @property
    def cameras(self) -> Cameras:
        """Whose pictures the policy sees."""
        return Cameras() if self.vision is None else Cameras(tuple(self.vision["cameras"]), int(self.vision["size"]))

    @property
    def observed(self) -> list[str]:
        """What the robot says; the policy adds its own last command where the card wants it."""
        return self.observation[: len(self.observation) - self.commands * len(self.action)]


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file holds.

    Attributes:
        calibration: of the residual test.
        selftest: `(observation (1, T, O), noise (1, A, H), chunk (1, H, A))`, physical, network and physical units.
        card: what the policy is.
        pictures: of the self-test, `(1, cameras, 3, size, size)` uint8, where the policy sees cameras.
        anchors: typical chunks `(K, A, H)` in network units, relative to where the robot is (where the card knows that).
    """

    net: ActionNetwork
    normalizer: Normalizer
    calibration: Calibration
    selftest: tuple[Tensor, Tensor, Tensor]
    card: PolicyCard
    anchors: Tensor | None = None
    pictures: Tensor | None = None
    path: Path | None = None
    sha256: str = ""

    def sampler(self, name: str, steps: int | None = None, ratio: float = WARM_RATIO, cache: bool = False) -> Sampler:
        """A sampler of this policy."""
        low, high = self.normalizer.action_range
        return Sampler(self.net, low, high, self.calibration, name, steps, ratio, self.card.stride, self.anchors, cache)

    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers this policy can serve."""
        lacking = {"stream": self.card.stride is None, "anchor": self.anchors is None}
        return tuple(name for name in SAMPLERS if not lacking.get(name, False))

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        tensors = {f"net.{k}": v.detach().cpu().half() for k, v in self.net.state_dict().items()}
        tensors |= self.normalizer.tensors()
        if self.net.origin is not None:
            tensors |= dict(zip(ORIGIN, (self.net.origin.weight, self.net.origin.bias), strict=True))
        tensors |= dict(zip(CALIBRATION, (self.calibration.ratios, self.calibration.limits), strict=True))
        tensors |= {} if self.anchors is None else {"anchors": self.anchors}
        tensors |= {} if self.pictures is None else {PICTURES: self.pictures}
        tensors |= dict(zip(SELFTEST, self.selftest, strict=True))
        tensors = {k: v.contiguous() for k, v in tensors.items()}
        card = self.card.model_dump_json()
        with atomic_file(path) as part:
            save_file(tensors, part, metadata={"card": card, "checksum": checksum(tensors, card)})


def checksum(tensors: Mapping[str, Tensor], card: str) -> str:
    """SHA-256 over the card and every tensor's name, type, shape and bytes, in the order of their names."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def network_of(card: PolicyCard) -> ActionNetwork:
    """The network a card describes, with random weights."""
    proc = process(card.process, **card.process_parameters)
    return ActionNetwork(
        card.architecture, card.head, proc, card.sigma_data, card.sigma_range, card.network, card.vision
    )


def find_policy(name: str | Path) -> Path:
    """A policy file: a path, or the name of a shipped one.

    Raises:
        InputError: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(WEIGHTS.glob("*.safetensors"))}
    if str(name) in shipped:
        return shipped[str(name)]
    raise InputError(
        f"{name}: no policy file, and no shipped policy of that name ({', '.join(shipped) or 'none ship'})"
    )


def load_policy_file(name: str | Path) -> PolicyFile:
    """Read a policy file and check that it is whole.

    Raises:
        InputError: unreadable, damaged, incomplete, or its parts do not fit each other.
    """
    path = find_policy(name)
    metadata, tensors = _read(path)
    if "card" not in metadata or "checksum" not in metadata:
        raise InputError(f"{path}: no policy of this suite (card and checksum are missing in its metadata)")
    for key in (*CALIBRATION, *SELFTEST):
        if key not in tensors:
            raise InputError(f"{path}: the tensor {key} is missing; the file is incomplete")
    normalizer = Normalizer.of(tensors, str(path))
    if checksum(tensors, metadata["card"]) != metadata["checksum"]:
        raise InputError(f"{path}: the checksum does not match; the file is damaged or was changed")
    try:
        card = PolicyCard.model_validate_json(metadata["card"])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: card field {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    net = network_of(card)
    weights = {k.removeprefix("net."): v.float() for k, v in tensors.items() if k.startswith("net.")}
    if {k: v.shape for k, v in net.state_dict().items()} != {k: v.shape for k, v in weights.items()}:
        raise InputError(f"{path}: the weights do not fit the network its card describes")
    if not all(bool(v.isfinite().all()) for v in tensors.values() if v.is_floating_point()):
        raise InputError(f"{path}: a tensor holds NaN or infinity; the file is damaged")
    net.load_state_dict(weights)
    _check_shapes(card, normalizer, tensors, path)
    if card.linear:
        net.origin = Origin(*(tensors[name].float() for name in ORIGIN))
    return PolicyFile(
        net.eval().requires_grad_(False),
        normalizer,
        Calibration(tensors[CALIBRATION[0]], tensors[CALIBRATION[1]]),
        (tensors[SELFTEST[0]], tensors[SELFTEST[1]], tensors[SELFTEST[2]]),
        card,
        tensors.get("anchors"),
        tensors.get(PICTURES),
        path,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def _seen(card: PolicyCard) -> tuple[int, tuple[int, ...]] | None:
    """Features and shape of the pictures of a policy with cameras."""
    if card.vision is None:
        return None
    cameras, size = len(card.vision["cameras"]), int(card.vision["size"])
    return 2 * int(card.vision["points"]) * cameras, (1, cameras, 3, size, size)


def _check_shapes(card: PolicyCard, normalizer: Normalizer, tensors: Mapping[str, Tensor], path: Path) -> None:
    observation, action = len(card.observation), len(card.action)
    seen = _seen(card)
    seen_width = card.observation_steps * normalizer.observation_scale.numel()
    condition = seen_width + (0 if seen is None else seen[0])
    pictures = tensors[PICTURES].shape if PICTURES in tensors else None
    good = (
        pictures == (None if seen is None else seen[1])
        and normalizer.angle.numel() == observation
        and normalizer.action_scale.numel() == action
        and tensors["selftest.observation"].shape == (1, card.observation_steps, observation)
        and tensors["selftest.noise"].shape == (1, action, card.horizon)
        and tensors["selftest.chunk"].shape == (1, card.horizon, action)
        and tensors["calibration.ratio"].shape == tensors["calibration.limit"].shape
        and tensors["calibration.ratio"].numel() > 1
        and ("anchors" not in tensors or tensors["anchors"].shape[1:] == (action, card.horizon))
        and card.execute <= card.horizon
        and (card.position is None or len(card.position) == action)
        and all(0 <= i < observation for i in card.position or ())
        and card.linear == all(name in tensors for name in ORIGIN)
        and (not card.linear or tensors[ORIGIN[0]].shape == (action, card.horizon, seen_width))
        and (not card.linear or tensors[ORIGIN[1]].shape == (action, card.horizon))
        and all(
            card.network.get(key) == value
            for key, value in {"action_dim": action, "horizon": card.horizon, "condition_dim": condition}.items()
        )
    )
    if not good:
        raise InputError(f"{path}: card, statistics, self-test and network differ in their sizes; the file is damaged")
