"""How a policy is run, and within which limits."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from domains.robot.guard import Limits, Vector
from domains.robot.policyfile import PolicyFile
from domains.robot.samplers import WARM_RATIO
from suite.config import Config
from suite.errors import InputError

Rate = float | list[float] | None


class GuardConfig(Config):
    """Limits of the commands; what is left out comes from the demonstrations.

    Attributes:
        low, high: position box, one number or one per action dimension.
        velocity, acceleration, jerk: in action units per s, s^2, s^3; default the largest of the demonstrations times
            `margin`, its square and its cube.
        margin: room for corrections that the demonstrations did not need.
        stale_after_s: an observation older than this is not acted on; default two control periods.
        teleport: a change of the observation beyond this many times the largest one-step change of the
            demonstrations makes the policy forget its plan.
    """

    low: Rate = None
    high: Rate = None
    velocity: Rate = None
    acceleration: Rate = None
    jerk: Rate = None
    margin: float = Field(default=2.0, ge=1)
    stale_after_s: float | None = Field(default=None, gt=0)
    teleport: float = Field(default=2.0, gt=0)


class PolicyConfig(Config):
    """How a policy is run.

    Attributes:
        sampler: see domains/robot/samplers.py.
        steps: network evaluations per chunk at most.
        execute: actions executed of a chunk before the next one; default 1 for rti and warm, the stride of the
            buffer for stream, else that of the card.
        warm_ratio: sigma/alpha at which the warm start is tested.
        guided: plan within the guard's velocity by guidance, so that the guard has less to cut off; costs derivatives of the
            network.
        cache: fuse the experts of a network of the kind mode for the sampler's steps; then no goals and no real-time chunking.
        deadline_ms: an action is due after so many milliseconds.
    """

    sampler: str = "warm"
    steps: int | None = Field(default=None, ge=1)
    execute: int | None = Field(default=None, ge=1)
    warm_ratio: float = Field(default=WARM_RATIO, gt=0)
    guided: bool = False
    cache: bool = False
    deadline_ms: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    guard: GuardConfig = GuardConfig()


def limits_of(file: PolicyFile, config: GuardConfig, box: tuple[ArrayLike, ArrayLike] | None = None) -> Limits:
    """The guard's limits: the settings, else the robot's box, else what the demonstrations show."""
    stats = file.normalizer
    width = len(file.card.action)
    low, high = (getattr(stats, name).double().numpy() for name in ("action_low", "action_high"))
    span = np.maximum(high - low, 1e-6 * np.maximum(1.0, np.abs(high)))
    if box is not None:
        given = [np.broadcast_to(np.asarray(side, dtype=np.float64).reshape(-1), (width,)) for side in box]
        low, high = (np.where(np.isfinite(side), side, own) for side, own in zip(given, (low, high), strict=True))

    def setting(name: str, default: Vector) -> Vector:
        value = getattr(config, name)
        array = default if value is None else np.asarray(value, dtype=np.float64).reshape(-1)
        if array.size not in (1, width):
            raise InputError(f"guard.{name} has {array.size} values; one, or {width}, is needed")
        return np.broadcast_to(array, (width,)).astype(np.float64)

    rates = {}
    for order, name in enumerate(("velocity", "acceleration", "jerk"), 1):
        shown = getattr(stats, name).double().numpy() * config.margin**order
        rates[name] = setting(name, np.maximum(shown, 1e-3 * span * file.card.fps**order))
    return Limits(setting("low", low), setting("high", high), **rates)
