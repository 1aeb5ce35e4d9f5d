"""Physical values to network values and back, and what the data say about ranges and speeds; travels with the weights.

A constant dimension has scale 0: it becomes 0 for the network and comes back as the constant. An angle is given to the
network as cosine and sine, so that it does not jump where it wraps. Of a point that is to be seen from a moving body the
network also gets the coordinates in the body's frame, `R(-theta) (p - b)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.robot.containers import Episode
from suite.errors import InputError

Kind = Literal["min-max", "z-score"]
PREFIX = "normalizer."


@dataclass(frozen=True)
class Normalizer:
    """Statistics of the training data, float32; O' counts an angle twice, and two for each point seen from a body.

    Attributes:
        angle: `(O,)`, 1 where the observation is an angle in radians.
        relative: `(K, 5)`, observation dimensions (p_x, p_y, b_x, b_y, theta) of each point seen from a body.
        observation_offset, observation_scale: `(O',)`, network value = (value - offset) / scale.
        action_offset, action_scale: `(A,)`.
        observation_low, observation_high, observation_step: `(O,)`, range and largest change in one step.
        action_low, action_high, action_start: `(A,)`, range, and mean first action of an episode.
        velocity, acceleration, jerk: `(A,)`, largest of the demonstrations, per s, s^2, s^3.
    """

    angle: Tensor
    relative: Tensor
    observation_offset: Tensor
    observation_scale: Tensor
    action_offset: Tensor
    action_scale: Tensor
    observation_low: Tensor
    observation_high: Tensor
    observation_step: Tensor
    action_low: Tensor
    action_high: Tensor
    action_start: Tensor
    velocity: Tensor
    acceleration: Tensor
    jerk: Tensor

    @classmethod
    def fit(
        cls,
        episodes: Sequence[Episode],
        fps: float,
        angles: Sequence[int],
        kind: Kind,
        relative: Sequence[Sequence[int]] = (),
    ) -> Normalizer:
        """Statistics of these episodes.

        Raises:
            InputError: an index that no observation dimension has.
        """
        observation = np.concatenate([e.observation for e in episodes]).astype(np.float64)
        action = np.concatenate([e.action for e in episodes]).astype(np.float64)
        width = observation.shape[1]
        if any(not 0 <= i < width for i in (*angles, *(i for row in relative for i in row))):
            raise InputError(
                f"data.angles is {list(angles)} and data.relative {[list(row) for row in relative]}; the observation has "
                f"the dimensions 0 to {width - 1}"
            )
        angle = np.zeros(width)
        angle[list(angles)] = 1
        seen = np.array(relative, dtype=np.float64).reshape(len(relative), 5)
        steps = [np.abs(_difference(e.observation.astype(np.float64), angle)) for e in episodes if len(e) > 1]
        wide = features(torch.from_numpy(observation), torch.from_numpy(angle), torch.from_numpy(seen)).numpy()
        o_offset, o_scale = _affine(wide, kind)
        split = int(width - angle.sum())  # cosine and sine already have the range of the network
        turning = slice(split, split + 2 * len(angles))
        o_offset[turning], o_scale[turning] = 0.0, 1.0
        a_offset, a_scale = _affine(action, kind)
        found = {
            "angle": angle,
            "relative": seen,
            "observation_offset": o_offset,
            "observation_scale": o_scale,
            "action_offset": a_offset,
            "action_scale": a_scale,
            "observation_low": observation.min(0),
            "observation_high": observation.max(0),
            "observation_step": np.concatenate(steps).max(0) if steps else np.zeros(width),
            "action_low": action.min(0),
            "action_high": action.max(0),
            "action_start": np.mean([e.action[0] for e in episodes], axis=0),
        }
        names = ("velocity", "acceleration", "jerk")
        found |= {name: _largest(episodes, order, fps) for order, name in enumerate(names, 1)}
        return cls(**{name: torch.as_tensor(value, dtype=torch.float32) for name, value in found.items()})

    # --- values ---

    def observation(self, values: Tensor) -> Tensor:
        """Physical `(..., O)` to network `(..., O')`."""
        wide = features(values, self.angle, self.relative)
        return _forward(wide, self.observation_offset, self.observation_scale)

    def action(self, values: Tensor) -> Tensor:
        """Physical `(..., A)` to network values."""
        return _forward(values, self.action_offset, self.action_scale)

    def physical_action(self, values: Tensor) -> Tensor:
        """Network `(..., A)` to physical values."""
        return self.action_offset + self.action_scale * values

    @property
    def action_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest network value of each action dimension in the data, `(A,)`."""
        return self.action(self.action_low), self.action(self.action_high)

    def change(self, before: NDArray[np.float64], now: NDArray[np.float64]) -> NDArray[np.float64]:
        """`|now - before|` `(..., O)`, around the circle for angles."""
        return np.abs(_wrap(now - before, self.angle.numpy()))

    # --- storage ---

    def tensors(self) -> dict[str, Tensor]:
        return {f"{PREFIX}{field.name}": getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: str) -> Normalizer:
        """From the tensors of a policy file.

        Raises:
            InputError: one is missing or not finite, or a scale is negative.
        """
        found = {}
        for field in fields(cls):
            key = f"{PREFIX}{field.name}"
            if key not in tensors:
                raise InputError(f"{source}: the tensor {key} is missing; a policy without its statistics is not used")
            found[field.name] = tensors[key].float()
            if not bool(found[field.name].isfinite().all()):
                raise InputError(f"{source}: the tensor {key} holds NaN or infinity; the file is damaged")
        if any(bool((found[key] < 0).any()) for key in ("observation_scale", "action_scale")):
            raise InputError(f"{source}: a scale of the normalizer is negative; the file is damaged")
        return cls(**found)


def _affine(values: NDArray[np.float64], kind: Kind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offset and scale of each column; scale 0 where it is constant (to float32's resolution)."""
    low, high = values.min(0), values.max(0)
    offset, scale = ((low + high) / 2, (high - low) / 2) if kind == "min-max" else (values.mean(0), values.std(0))
    constant = high - low <= 1e-6 * np.maximum(1.0, np.abs(high))
    return np.where(constant, low, offset), np.where(constant, 0.0, scale)


def _forward(values: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    return (values - offset) * inverse


def _wrap(change: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(angle > 0, (change + np.pi) % (2 * np.pi) - np.pi, change)


def _difference(values: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return _wrap(np.diff(values, axis=0), angle)


def features(values: Tensor, angle: Tensor, relative: Tensor) -> Tensor:
    """`(..., O)` to `(..., O')`: what is no angle, cosines, sines, then points in the frames of bodies."""
    turning = angle > 0
    angles = values[..., turning]
    parts = [values[..., ~turning], angles.cos(), angles.sin()]
    for px, py, bx, by, theta in relative.long().tolist():
        dx, dy = values[..., px] - values[..., bx], values[..., py] - values[..., by]
        c, s = values[..., theta].cos(), values[..., theta].sin()
        parts.append(torch.stack([c * dx + s * dy, c * dy - s * dx], dim=-1))
    return torch.cat(parts, dim=-1)


def _largest(episodes: Sequence[Episode], order: int, fps: float) -> NDArray[np.float64]:
    """Largest `|d^order action / dt^order|` within an episode, by finite differences, `(A,)`."""
    parts = [np.abs(np.diff(e.action.astype(np.float64), order, axis=0)) for e in episodes if len(e) > order]
    width = episodes[0].action.shape[1]
    return (np.concatenate(parts).max(0) if parts else np.zeros(width)) * fps**order
