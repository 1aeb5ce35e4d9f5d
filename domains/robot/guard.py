"""The guard: whatever the policy asks, the command stays inside the box and within velocity, acceleration and jerk.

Limits hold for the commands as a sequence at the control rate, by finite differences. A command is let through only if
from there the robot can still stop inside all limits; else it moves as far towards the request as that allows. The way
to stop is a jerk-limited brake, so a viable command always exists.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suite.errors import InputError

Vector = NDArray[np.float64]

_MARGIN = 1e-9  # of a limit: keeps differences formed by others in float64 below it
_LONGEST = 400  # steps of a brake that are followed before a command counts as not viable
_SHARES = np.linspace(1, 0, 17)[:, None, None]  # of the way from the brake to the request


@dataclass(frozen=True)
class Limits:
    """Box and largest rates of a command, each `(A,)`, in action units, per s, s^2 and s^3.

    Raises:
        InputError: a limit that is not positive, or an empty box.
    """

    low: Vector
    high: Vector
    velocity: Vector
    acceleration: Vector
    jerk: Vector

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all() and (self.low <= self.high).all()):
            raise InputError(f"the position box must be finite with low <= high, not {self.low} to {self.high}")
        for name in ("velocity", "acceleration", "jerk"):
            if not (getattr(self, name) > 0).all():
                raise InputError(f"guard.{name} must be positive for every action dimension, not {getattr(self, name)}")


def brake_step(velocity: Vector, acceleration: Vector, most: Vector, jerk: Vector) -> Vector:
    """The next acceleration of the shortest brake, all per step: velocity to 0 with |acceleration| <= most, |change| <= jerk.

    Of the change D of velocity still needed, the largest acceleration c that leaves time to return it to 0 satisfies
    `c + (c - J) + (c - 2J) + ... <= D`: with n terms, `c = (D + J n (n - 1) / 2) / n`.
    """
    needed = np.abs(velocity)
    count = np.maximum(1, np.ceil((np.sqrt(1 + 8 * needed / jerk) - 1) / 2 - 1e-12))
    size = np.minimum((needed + jerk * count * (count - 1) / 2) / count, most)
    return np.asarray(np.clip(-np.sign(velocity) * size, acceleration - jerk, acceleration + jerk))


class Guard:
    """Keeps a batch of command sequences within limits.

    Args:
        limits: see `Limits`.
        dt: seconds between commands.
    """

    def __init__(self, limits: Limits, dt: float) -> None:
        self.limits, self.dt = limits, dt
        keep = 1 - _MARGIN
        self._v = limits.velocity * dt * keep
        self._a = np.minimum(limits.acceleration * dt**2, 2 * limits.velocity * dt) * keep
        self._j = np.minimum(limits.jerk * dt**3, 2 * self._a) * keep
        self.position: Vector | None = None  # last command (B, A), its change, and the change of that
        self.velocity: Vector = np.zeros(0)
        self.acceleration: Vector = np.zeros(0)

    def start(self, position: Vector | None) -> None:
        """Begin at rest at this command `(B, A)`; None: the first command is only put into the box."""
        if position is None:
            self.position = None
            return
        self.position = np.clip(position, self.limits.low, self.limits.high)
        self.velocity, self.acceleration = np.zeros_like(self.position), np.zeros_like(self.position)

    def brake(self) -> Vector:
        """The next command of the way to a stop, `(B, A)`: hold or decelerate."""
        if self.position is None:
            raise ValueError("a guard that was not started cannot brake")
        return self.position + self.velocity + brake_step(self.velocity, self.acceleration, self._a, self._j)

    def __call__(self, request: Vector) -> tuple[Vector, list[Counter[str]]]:
        """The command for a finite request `(B, A)`, and for each item which limits shortened it."""
        boxed = np.clip(request, self.limits.low, self.limits.high)
        if self.position is None:
            self.start(boxed)
            return boxed, [Counter({"position": int(changed)}) for changed in (boxed != request).any(1)]
        base = self.brake()
        change = boxed - self.position
        reasons = {
            "position": boxed != request,
            "velocity": np.abs(change) > self._v,
            "acceleration": np.abs(change - self.velocity) > self._a,
            "jerk": np.abs(change - self.velocity - self.acceleration) > self._j,
        }
        command = boxed
        if not self._brakes(boxed[None])[0].all():
            command = self._nearest(base, boxed)
            reasons["braking"] = (command != boxed) & ~np.any([reasons[k] for k in reasons if k != "position"], axis=0)
        self._advance(command)
        # Rounding of `position + change` may leave the box by an ulp.
        self.position = np.clip(command, self.limits.low, self.limits.high)
        counts = [Counter({k: 1 for k, hit in reasons.items() if hit[i].any()}) for i in range(len(request))]
        return self.position.copy(), counts

    def _advance(self, command: Vector) -> None:
        if self.position is None:
            raise ValueError("a guard that was not started cannot advance")
        velocity = command - self.position
        self.acceleration = velocity - self.velocity
        self.velocity = velocity

    def _nearest(self, base: Vector, wanted: Vector) -> Vector:
        """The viable command nearest to the wanted one on the way from the brake's, each dimension for itself.

        Only those count from which a brake ends on this side of the wanted position: else a request that stands
        still would be overshot again and again.
        """
        side = np.sign(wanted - base)
        slack = 1e-9 * np.maximum(1.0, np.abs(wanted))
        low, width = np.zeros_like(base), 1.0
        for _ in range(3):  # to 1/4096 of the way
            shares = np.minimum(low + width * _SHARES, 1.0)
            good, stop = self._brakes(base + shares * (wanted - base))
            good &= side * (wanted - stop) >= -slack
            first = np.argmax(good, axis=0)  # the shares fall, so the first viable one is the largest
            found = np.take_along_axis(shares, first[None], 0)[0]
            low = np.where(good.any(0), found, low)
            width /= 16
        return base + low * (wanted - base)

    def _brakes(self, candidates: Vector) -> tuple[NDArray[np.bool_], Vector]:
        """Whether after each candidate `(K, B, A)` a brake stays within all limits, and where it ends."""
        if self.position is None:
            raise ValueError("a guard that was not started has no viable commands")
        slack = 1 + 1e-10
        at = candidates
        v = at - self.position
        c = v - self.velocity
        good = np.abs(c - self.acceleration) <= self._j * slack
        box = 1e-10 * np.maximum(1.0, np.abs(self.limits.high) + np.abs(self.limits.low))
        low, high = self.limits.low - box, self.limits.high + box
        for _ in range(_LONGEST):
            good &= (np.abs(v) <= self._v * slack) & (np.abs(c) <= self._a * slack) & (at >= low) & (at <= high)
            moving = (np.abs(v) > 1e-9 * self._v) | (np.abs(c) > 1e-9 * self._a)
            if not (moving & good).any():
                break
            c = brake_step(v, c, self._a, self._j)
            v = v + c
            at = at + v
        return np.asarray(good & ~moving), np.asarray(at)
