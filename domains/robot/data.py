"""Reading demonstrations in whichever layout they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from domains.robot.arrays import read_npz, read_robomimic, read_zarr
from domains.robot.containers import Demonstrations, Episode
from domains.robot.lerobot import is_lerobot, read_lerobot
from suite.errors import InputError

__all__ = ["Demonstrations", "Episode", "describe_data", "read_demonstrations"]


def read_demonstrations(path: Path, keys: tuple[str, ...] = ()) -> Demonstrations:
    """A LeRobotDataset folder (v2.1, v3.0), a diffusion_policy zarr, a robomimic HDF5 file, or an npz file.

    Args:
        keys: names of the observation arrays; default see each reader.

    Raises:
        InputError: none of these, or damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir() and is_lerobot(path):
        return read_lerobot(path, keys)
    if path.is_dir() and any((path / name).exists() for name in (".zgroup", "zarr.json")):
        return read_zarr(path, keys)
    if path.is_file() and path.suffix in (".hdf5", ".h5"):
        return read_robomimic(path, keys)
    if path.is_file() and path.suffix == ".npz":
        return read_npz(path, keys)
    raise InputError(
        f"{path}: no demonstrations; a LeRobotDataset folder (v2.1 or v3.0), a zarr replay buffer, a robomimic .hdf5 "
        "or an .npz file is needed"
    )


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
