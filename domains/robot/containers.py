"""Demonstrations in memory: episodes of observation and action at a constant rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    Attributes:
        observation: `(T, O)`, in the units of the source.
        action: `(T, A)`; `action[i]` was commanded on seeing `observation[i]`.
        pictures: `(T, cameras, 3, size, size)` uint8; None where no camera was asked for.
    """

    observation: Array
    action: Array
    pictures: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class Cameras:
    """Which pictures are read, and at which height and width."""

    names: tuple[str, ...] = ()
    size: int = 64


@dataclass(frozen=True)
class Demonstrations:
    """The episodes of one data set.

    Attributes:
        name: of the file or folder.
        layout: `lerobot-v2.1`, `lerobot-v3.0`, `zarr`, `robomimic` or `npz`.
        fps: control rate in Hz; None where the source does not tell it.
        observation_names, action_names: one name per dimension.
        notes: sentences on what was left out or assumed.
    """

    name: str
    layout: str
    episodes: tuple[Episode, ...]
    fps: float | None
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.episodes:
            raise InputError(f"{self.name}: the data set holds no episode")
        if self.fps is not None and not 0 < self.fps < 1e5:
            raise InputError(f"{self.name}: the control rate is {self.fps} Hz; a positive finite number is needed")
        first = self.episodes[0]
        for number, episode in enumerate(self.episodes):
            _check(episode, first, f"{self.name}: episode {number}")
        dims = {"observation": (self.observation_names, first.observation), "action": (self.action_names, first.action)}
        for what, (names, values) in dims.items():
            if len(names) != values.shape[1]:
                raise InputError(f"{self.name}: {len(names)} {what} names for {values.shape[1]} dimensions")

    @property
    def frames(self) -> int:
        return sum(len(episode) for episode in self.episodes)

    @property
    def observation_dim(self) -> int:
        return self.episodes[0].observation.shape[1]

    @property
    def action_dim(self) -> int:
        return self.episodes[0].action.shape[1]


def _check(episode: Episode, first: Episode, where: str) -> None:
    for what, values, like in (
        ("observation", episode.observation, first.observation),
        ("action", episode.action, first.action),
    ):
        if values.ndim != 2 or values.shape[1] == 0:
            raise InputError(f"{where}: the {what} has the shape {values.shape}; (steps, dimensions) is needed")
        if values.shape[1] != like.shape[1]:
            raise InputError(
                f"{where}: the {what} has {values.shape[1]} dimensions, those of the first episode have {like.shape[1]}"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{where}: the {what} holds NaN or infinity; remove that episode or repair it")
    if episode.pictures is not None and len(episode.pictures) != len(episode.action):
        raise InputError(f"{where}: {len(episode.pictures)} pictures and {len(episode.action)} actions")
    if len(episode.observation) != len(episode.action) or not len(episode):
        raise InputError(
            f"{where}: {len(episode.observation)} observations and {len(episode.action)} actions; "
            "one of each per step is needed"
        )


def cut(
    observation: Array,
    action: Array,
    ends: NDArray[np.integer],
    name: str,
    pictures: NDArray[np.uint8] | None = None,
) -> tuple[Episode, ...]:
    """Episodes of concatenated arrays; `ends[i]` is the index after the last step of episode i.

    Raises:
        InputError: the ends do not rise strictly to the number of steps.
    """
    stops = [int(end) for end in np.asarray(ends).reshape(-1)]
    if not stops or stops[0] < 1 or any(b <= a for a, b in pairwise(stops)):
        raise InputError(f"{name}: episode_ends must rise strictly from at least 1; it is {stops[:5]}...")
    if pictures is not None and len(pictures) != len(action):
        raise InputError(f"{name}: {len(pictures)} pictures and {len(action)} actions")
    if not stops[-1] == len(observation) == len(action):
        raise InputError(
            f"{name}: episode_ends stops at {stops[-1]}, with {len(observation)} observations and {len(action)} actions"
        )
    starts = [0, *stops[:-1]]
    return tuple(
        Episode(observation[a:b], action[a:b], None if pictures is None else pictures[a:b])
        for a, b in zip(starts, stops, strict=True)
    )


def matrix(values: object, where: str) -> Array:
    """`values` as float32 `(N, D)`: a vector becomes one column, trailing dimensions are flattened.

    Raises:
        InputError: not numeric, or empty.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim == 0 or array.size == 0:
        raise InputError(f"{where}: numbers of shape (steps, dimensions) are needed, not {array.dtype} {array.shape}")
    return np.ascontiguousarray(array.reshape(len(array), -1), dtype=np.float32)


def numbered(name: str, count: int) -> tuple[str, ...]:
    """`name_0 ... name_{count-1}`, or the name itself where there is one."""
    return (name,) if count == 1 else tuple(f"{name}_{i}" for i in range(count))


def joined(parts: Sequence[Array], where: str) -> Array:
    """Columns side by side.

    Raises:
        InputError: the parts differ in length.
    """
    if len({len(part) for part in parts}) != 1:
        raise InputError(f"{where}: the observation keys differ in length: {[len(part) for part in parts]}")
    return np.concatenate(parts, axis=1)
