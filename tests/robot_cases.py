"""Small demonstrations and a small policy for the robot tests."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from domains.robot.containers import Demonstrations, Episode
from domains.robot.finishing import finish
from domains.robot.policyfile import PolicyFile
from domains.robot.settings import RobotTrainingConfig
from domains.robot.training import PolicyTrainer


def episodes(count: int = 6, length: int = 30, seed: int = 0) -> tuple[Episode, ...]:
    """A point walks towards a goal; the action is its next position. The third action dimension is constant."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        goal, at = rng.uniform(-1, 1, 2), rng.uniform(-1, 1, 2)
        seen, done = [], []
        for _ in range(length):
            seen.append([*at, *goal, np.arctan2(*goal)])
            at = at + 0.2 * (goal - at)
            done.append([*at, 7.0])
        out.append(Episode(np.array(seen, np.float32), np.array(done, np.float32)))
    return tuple(out)


def demonstrations(**options: int) -> Demonstrations:
    names = ("x", "y", "goal_x", "goal_y", "angle")
    return Demonstrations("walk", "npz", episodes(**options), 10.0, names, ("x", "y", "grip"))


def config(**changes: object) -> RobotTrainingConfig:
    settings = {
        "data": {"angles": [4], "position": [0, 1, 0], "held_out": 3},
        "network": {"kind": "mlp", "width": 32, "blocks": 1, "features": 8},
        "stream": {"share": 0.25, "stride": 2},
        "anchors": 5,
        "horizon": 8,
        "execute": 4,
        "batch": 64,
        "iterations": 60,
        "warmup": 5,
    }
    return RobotTrainingConfig.model_validate({**settings, **changes})


def policy_file(**changes: object) -> PolicyFile:
    with TemporaryDirectory() as folder:  # for the trainer's checkpoint
        output = Path(folder) / "walk.safetensors"
        trainer = PolicyTrainer(config(**changes), demonstrations(), output, torch.device("cpu"))
        trainer.run()
    return finish(trainer)


def write_npz(path: Path, name: str = "state") -> Path:
    """The demonstrations as an npz file."""
    found = episodes()
    np.savez(
        path,
        **{name: np.concatenate([e.observation for e in found])},
        action=np.concatenate([e.action for e in found]),
        episode_ends=np.cumsum([len(e) for e in found]),
        fps=np.float64(10),
    )
    return path
