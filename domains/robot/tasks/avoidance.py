"""Avoidance: a point passes three rows of obstacles, by 2 x 3 x 4 = 24 routes (after the task of Jia et al. 2024, D3IL).

The demonstrations take every route equally often: the share of successes says whether a policy commits to a route, and the
entropy of the routes whether it still knows all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from domains.robot.containers import Demonstrations, Episode

Vector = NDArray[np.float64]

FPS = 20.0
ROWS = (0.4, 0.9, 1.4)  # y of the rows
OBSTACLES = ((0.0,), (-0.2, 0.2), (-0.4, 0.0, 0.4))  # x of their obstacles
GAPS = ((-0.2, 0.2), (-0.4, 0.0, 0.4), (-0.6, -0.2, 0.2, 0.6))  # x of the middles of their gaps
RADIUS = 0.07
FINISH = 1.65
PACE = 0.03  # length of an expert's step
SPEED = 0.06  # the point moves so far in a step at most
NAMES = ("x", "y")


@dataclass(frozen=True)
class Box:
    """Range of the commands."""

    low: Vector
    high: Vector


class Avoidance:
    """The task, with gymnasium's `reset` and `step`: observation and command are positions (x, y).

    A step moves the point towards the command, by at most `SPEED`. The reward is the share of the way to the finish
    that lies behind it; touching an obstacle ends the episode.
    """

    routes = 24
    action_space = Box(np.array([-1.0, -0.1]), np.array([1.0, 1.9]))

    def reset(self, seed: int = 0) -> tuple[Vector, dict[str, Any]]:
        rng = np.random.default_rng(seed)
        self.at = np.array([rng.normal(0, 0.02), 0.0])
        self.passed: list[int] = []
        return self.at.copy(), {}

    def step(self, action: Any) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        before, way = self.at, np.asarray(action, dtype=np.float64) - self.at
        self.at = before + way * min(1.0, SPEED / max(float(np.hypot(*way)), 1e-12))
        for row, y in enumerate(ROWS):
            if before[1] < y <= self.at[1] and len(self.passed) == row:
                share = (y - before[1]) / (self.at[1] - before[1])
                x = before[0] + share * (self.at[0] - before[0])
                self.passed.append(int(np.argmin(np.abs(np.array(GAPS[row]) - x))))
        hit = bool(collides(np.linspace(before, self.at, 4)).any())
        done = bool(self.at[1] >= FINISH) and not hit and len(self.passed) == len(ROWS)
        about = {"is_success": done, "route": tuple(self.passed) if done else None}
        return self.at.copy(), float(np.clip(self.at[1] / FINISH, 0, 1)), hit or done, False, about

    def render(self) -> NDArray[np.uint8]:
        """A picture `(300, 420, 3)`, y upwards."""
        y, x = np.mgrid[1.45:-0.05:300j, -1.05:1.05:420j]  # type: ignore[misc]
        picture = np.full((300, 420, 3), 255, dtype=np.uint8)
        for row, centres in zip(ROWS, OBSTACLES, strict=True):
            for centre in centres:
                picture[np.hypot(x - centre, y - row) < RADIUS] = (90, 90, 90)
        picture[np.abs(y - FINISH) < 0.006] = (0, 150, 0)
        picture[np.hypot(x - self.at[0], y - self.at[1]) < 0.025] = (200, 30, 30)
        return picture


def collides(points: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether points `(..., 2)` lie in an obstacle."""
    centres = np.array([(x, y) for y, row in zip(ROWS, OBSTACLES, strict=True) for x in row])
    distance = np.linalg.norm(points[..., None, :] - centres, axis=-1)
    return np.asarray((distance < RADIUS).any(-1))


def expert(rng: np.random.Generator) -> Episode:
    """One demonstration: a random route, a monotone cubic spline through its gaps, smooth tracking noise.

    Each action is the point of the spline that comes next, so it leads back to the spline from where the noise has put
    the robot.
    """
    start = rng.normal(0, 0.02)
    knots, values = [0.0], [start]
    for row, gaps in zip(ROWS, GAPS, strict=True):
        x = rng.choice(gaps) + rng.normal(0, 0.015)
        knots += [row - 0.05, row + 0.05]
        values += [x, x]
    knots, values = [*knots, FINISH + 0.1], [*values, values[-1]]
    y = np.linspace(0, knots[-1], 2000)
    line = np.stack([PchipInterpolator(knots, values)(y), y], axis=1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    stops = np.arange(0, length[-1], PACE)
    path = np.stack([np.interp(stops, length, line[:, i]) for i in range(2)], axis=1)
    noise = np.zeros_like(path)
    for i in range(1, len(path)):
        noise[i] = 0.8 * noise[i - 1] + rng.normal(0, 0.01, 2)
    seen = path + noise
    return Episode(seen[:-1].astype(np.float32), path[1:].astype(np.float32))


def demonstrations(episodes: int, seed: int) -> Demonstrations:
    """So many expert episodes; one that touches an obstacle is drawn again."""
    rng = np.random.default_rng(seed)
    kept: list[Episode] = []
    while len(kept) < episodes:
        episode = expert(rng)
        if not collides(episode.observation).any():
            kept.append(episode)
    return Demonstrations("avoidance", "npz", tuple(kept), FPS, NAMES, NAMES)
