"""Reading demonstrations in whichever layout they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from domains.robot.arrays import read_npz, read_robomimic, read_zarr
from domains.robot.containers import Cameras, Demonstrations, Episode
from domains.robot.lerobot import is_lerobot, read_lerobot
from suite.errors import InputError

__all__ = ["Demonstrations", "Episode", "describe_data", "read_demonstrations", "with_commands"]


def read_demonstrations(path: Path, keys: tuple[str, ...] = (), cameras: Cameras | None = None) -> Demonstrations:
    """A LeRobotDataset folder (v2.1, v3.0), a diffusion_policy zarr, a robomimic HDF5 file, or an npz file.

    Args:
        keys: names of the observation arrays; default see each reader.
        cameras: pictures to read as well; default none.

    Raises:
        InputError: none of these, or damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir() and is_lerobot(path):
        return read_lerobot(path, keys, cameras)
    if path.is_dir() and any((path / name).exists() for name in (".zgroup", "zarr.json")):
        return read_zarr(path, keys, cameras)
    if path.is_file() and path.suffix in (".hdf5", ".h5"):
        return read_robomimic(path, keys, cameras)
    if path.is_file() and path.suffix == ".npz":
        return read_npz(path, keys, cameras)
    raise InputError(
        f"{path}: no demonstrations; a LeRobotDataset folder (v2.1 or v3.0), a zarr replay buffer, a robomimic .hdf5 "
        "or an .npz file is needed"
    )


def with_commands(data: Demonstrations, position: Sequence[int] | None) -> Demonstrations:
    """The observations with the command of the step before; before the first one, the measured position or that command."""

    def longer(episode: Episode) -> Episode:
        first = episode.action[:1] if position is None else episode.observation[:1, list(position)]
        before = np.concatenate([first, episode.action[:-1]])
        return replace(episode, observation=np.concatenate([episode.observation, before], axis=1))

    names = (*data.observation_names, *(f"command.{name}" for name in data.action_names))
    return replace(data, episodes=tuple(longer(e) for e in data.episodes), observation_names=names)


def describe_data(path: Path) -> dict[str, Any]:
    """What a data set holds, as plain facts."""
    data = read_demonstrations(path)
    lengths = [len(episode) for episode in data.episodes]
    actions = np.concatenate([episode.action for episode in data.episodes])
    return {
        "kind": "demonstrations",
        "layout": data.layout,
        "episodes": len(lengths),
        "frames": data.frames,
        "episode_length": {"min": min(lengths), "mean": round(float(np.mean(lengths)), 1), "max": max(lengths)},
        "fps": data.fps,
        "observation": list(data.observation_names),
        "action": list(data.action_names),
        "action_min": actions.min(axis=0).tolist(),
        "action_max": actions.max(axis=0).tolist(),
        "notes": list(data.notes),
    }
