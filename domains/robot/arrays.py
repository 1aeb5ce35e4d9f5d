"""Demonstrations in array files: diffusion_policy's zarr replay buffer, robomimic's HDF5, and NumPy's npz."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from domains.robot.containers import Array, Cameras, Demonstrations, Episode, cut, joined, matrix, numbered
from domains.robot.vision import Pictures, resized
from suite.errors import InputError
from suite.files import atomic_file, existing, reading

OBSERVATIONS = ("state", "observations", "observation", "obs")
ACTIONS = ("action", "actions")
ROBOMIMIC = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")  # its usual low-dim observation


def read_zarr(path: Path, keys: tuple[str, ...] = (), cameras: Cameras | None = None) -> Demonstrations:
    """A replay buffer: `data/*` concatenated over episodes, and `meta/episode_ends` (Chi et al. 2023)."""
    import zarr

    with reading(path, "the zarr folder cannot be read"):
        root = zarr.open_group(existing(path, folder=True), mode="r")
        data: Any = root["data"]
        ends: Any = root["meta/episode_ends"]
        names = sorted(data.array_keys())
        chosen, action = _choose(names, keys, path)
        arrays = {key: np.asarray(data[key][:]) for key in (*chosen, action)}
        pictures = _pictures(data, names, cameras, path)
        stops = np.asarray(ends[:])
    return _concatenated(path, "zarr", arrays, chosen, action, stops, names, None, pictures, cameras)


def read_npz(path: Path, keys: tuple[str, ...] = (), cameras: Cameras | None = None) -> Demonstrations:
    """Arrays concatenated over episodes, with `episode_ends`, and `fps` where the file knows it."""
    with reading(path, "the npz file cannot be read"), np.load(existing(path), allow_pickle=False) as file:
        names = list(file.files)
        if "episode_ends" not in names:
            raise InputError(f"{path}: there is no array episode_ends; the file has {', '.join(names)}")
        chosen, action = _choose(names, keys, path)
        arrays = {key: file[key] for key in (*chosen, action)}
        pictures = _pictures(file, names, cameras, path)
        stops = file["episode_ends"]
        fps = float(file["fps"]) if "fps" in names else None
    return _concatenated(path, "npz", arrays, chosen, action, stops, names, fps, pictures, cameras)


def _pictures(source: Any, names: list[str], cameras: Cameras | None, path: Path) -> Pictures | None:
    """`(N, cameras, 3, size, size)` of arrays `(N, rows, columns, 3)`."""
    if cameras is None or not cameras.names:
        return None
    missing = [name for name in cameras.names if name not in names]
    if missing:
        raise InputError(f"{path}: there is no array {missing[0]!r} of pictures; the file has {', '.join(names)}")
    found = [resized(source[name][:], cameras.size, f"{path}: {name}") for name in cameras.names]
    if len({part.shape for part in found}) != 1:
        raise InputError(f"{path}: the cameras {', '.join(cameras.names)} have different numbers of pictures")
    return np.stack(found, axis=1)


def write_npz(data: Demonstrations, path: Path) -> None:
    """The layout that `read_npz` reads."""
    arrays: dict[str, Any] = {
        "state": np.concatenate([e.observation for e in data.episodes]),
        "action": np.concatenate([e.action for e in data.episodes]),
        "episode_ends": np.cumsum([len(e) for e in data.episodes]),
    }
    if data.fps is not None:
        arrays["fps"] = np.float64(data.fps)
    with atomic_file(path) as part:
        np.savez_compressed(part, **arrays)


def _choose(names: list[str], keys: tuple[str, ...], path: Path) -> tuple[tuple[str, ...], str]:
    """Names of the observation arrays and of the action array."""
    chosen = keys or tuple(key for key in OBSERVATIONS if key in names)[:1]
    action = next((key for key in ACTIONS if key in names), None)
    missing = [key for key in chosen if key not in names]
    if not chosen or missing or action is None:
        what = f"array {missing[0]!r}" if missing else "array of actions" if chosen else "array of observations"
        raise InputError(
            f"{path}: there is no {what}; the file has {', '.join(names)} (name the observation with "
            "--set 'data.observation=[NAME]')"
        )
    return chosen, action


def _concatenated(
    path: Path,
    layout: str,
    arrays: Mapping[str, Any],
    chosen: tuple[str, ...],
    action: str,
    stops: Any,
    names: list[str],
    fps: float | None,
    pictures: Pictures | None = None,
    cameras: Cameras | None = None,
) -> Demonstrations:
    parts = {key: matrix(values, f"{path}: {key}") for key, values in arrays.items()}
    observation = joined([parts[key] for key in chosen], str(path))
    seen = () if cameras is None else cameras.names
    unread = [name for name in names if name not in (*chosen, *seen, action, "episode_ends", "fps")]
    return Demonstrations(
        path.name,
        layout,
        cut(observation, parts[action], stops, str(path), pictures),
        fps,
        tuple(name for key in chosen for name in numbered(key, parts[key].shape[1])),
        numbered(action, parts[action].shape[1]),
        (f"Not read: {', '.join(unread)}.",) if unread else (),
    )


def read_robomimic(path: Path, keys: tuple[str, ...] = (), cameras: Cameras | None = None) -> Demonstrations:
    """`/data/demo_N/{obs/*, actions}` of robomimic.

    Without `keys` the observation is robomimic's usual low-dim one, or else every vector under `obs`, by name.
    """
    import h5py

    with reading(path, "the HDF5 file cannot be read"), h5py.File(existing(path), "r") as file:
        if "data" not in file:
            raise InputError(f"{path}: there is no group /data; robomimic keeps its episodes there")
        demos = sorted(file["data"], key=lambda name: (len(name), name))
        if not demos:
            raise InputError(f"{path}: the group /data holds no episode")
        groups = {demo: file["data"][demo] for demo in demos}
        names = sorted(groups[demos[0]].get("obs", {}))
        vectors = [name for name in names if groups[demos[0]]["obs"][name].ndim <= 2]
        usual = tuple(key for key in ROBOMIMIC if key in vectors)
        chosen = keys or (usual if len(usual) == len(ROBOMIMIC) else tuple(vectors))
        missing = [key for key in chosen if key not in names]
        if missing or not chosen:
            raise InputError(f"{path}: there is no observation {missing or 'vector'}; obs holds {', '.join(names)}")
        rows = [_demo(group, chosen, f"{path}: {demo}") for demo, group in groups.items()]
        seen = [_pictures(g["obs"], sorted(g["obs"]), cameras, path) for g in groups.values()]
        fps = _control_rate(file["data"].attrs)
    columns = tuple(name for key, part in zip(chosen, rows[0][0], strict=True) for name in numbered(key, part.shape[1]))
    unread = [name for name in names if name not in (*chosen, *(() if cameras is None else cameras.names))]
    return Demonstrations(
        path.name,
        "robomimic",
        tuple(Episode(joined(parts, str(path)), action, p) for (parts, action), p in zip(rows, seen, strict=True)),
        fps,
        columns,
        numbered("action", rows[0][1].shape[1]),
        (f"Not read: {', '.join(unread)}.",) if unread else (),
    )


def _demo(group: Any, chosen: tuple[str, ...], where: str) -> tuple[list[Array], Array]:
    if "actions" not in group or any(key not in group.get("obs", {}) for key in chosen):
        raise InputError(f"{where}: actions and obs/{', obs/'.join(chosen)} are needed")
    return [matrix(group["obs"][key][()], where) for key in chosen], matrix(group["actions"][()], where)


def _control_rate(attributes: Mapping[str, Any]) -> float | None:
    """`control_freq` of the simulator's settings, where the file has them."""
    with reading(Path("env_args"), "the attribute env_args is no JSON"):
        settings = json.loads(attributes.get("env_args", "{}"))
        rate = settings.get("env_kwargs", {}).get("control_freq")
    return None if rate is None else float(rate)
