"""What the policy has seen: checks of each observation, and the short history that conditions the network."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.robot.guard import Vector
from domains.robot.normalizer import Normalizer

_WIDEN = 0.25  # of its range: an observation may leave that of the demonstrations by so much


class Senses:
    """Observation history of a batch.

    Args:
        steps: observations the network sees.
        stale_after: seconds; an older observation is refused.
        teleport: times the largest one-step change of the demonstrations that counts as a jump.

    Attributes:
        latest: last accepted observation `(B, O)`; the middle of the range before there was one.
        jumped: `(B,)`, whether the last observation was a jump; its history then begins anew.
    """

    def __init__(self, normalizer: Normalizer, steps: int, batch: int, stale_after: float, teleport: float) -> None:
        self.normalizer, self.stale_after = normalizer, stale_after
        low, high = (v.double().numpy() for v in (normalizer.observation_low, normalizer.observation_high))
        turning = normalizer.angle.numpy() > 0
        span = high - low
        self._low = np.where(turning, -1e6, low - _WIDEN * span)
        self._high = np.where(turning, 1e6, high + _WIDEN * span)
        self._jump = teleport * np.maximum(normalizer.observation_step.double().numpy(), 0.02 * span)
        self.latest: Vector = np.broadcast_to((low + high) / 2, (batch, len(low))).copy()
        self.jumped: NDArray[np.bool_] = np.zeros(batch, dtype=bool)
        self._seen = np.zeros(batch, dtype=bool)
        self._history = np.repeat(self.latest[:, None], steps, axis=1)
        self._time: float | None = None

    def take(self, values: Vector | None, timestamp: float | None, notes: list[Counter[str]]) -> NDArray[np.bool_]:
        """Check an observation `(B, O)` and add it to the history; returns `(B,)`, where it may be acted on."""
        self.jumped[:] = False
        refused = "missing" if values is None else "stale" if self._stale(timestamp) else ""
        if values is None or refused:
            for note in notes:
                note[refused] += 1
            return np.zeros(len(self.latest), dtype=bool)
        usable = np.asarray(np.isfinite(values).all(axis=1))
        safe = np.where(usable[:, None], values, self.latest)
        inside = np.clip(safe, self._low, self._high)
        change = self.normalizer.change(self.latest, inside)
        self.jumped = np.asarray(usable & self._seen & (change > self._jump).any(axis=1))
        for item, note in enumerate(notes):
            note.update(
                {
                    name: 1
                    for name, hit in (
                        ("non_finite", not usable[item]),
                        ("range", (inside[item] != safe[item]).any()),
                        ("teleport", self.jumped[item]),
                    )
                    if hit
                }
            )
        anew = (usable & ~self._seen) | self.jumped
        self._history[usable, :-1] = self._history[usable, 1:]
        self._history[usable, -1] = inside[usable]
        self._history[anew] = inside[anew][:, None]
        self.latest = np.where(usable[:, None], inside, self.latest)
        self._seen |= usable
        return usable

    def _stale(self, timestamp: float | None) -> bool:
        """Older than allowed, not newer than the last one, or no time at all."""
        if timestamp is None:
            return False
        fresh = time.monotonic() - timestamp <= self.stale_after and (self._time is None or timestamp > self._time)
        if fresh:
            self._time = timestamp
        return not fresh

    def condition(self) -> Tensor:
        """`(B, T * O')` in network units."""
        return self.normalizer.observation(torch.from_numpy(self._history).float()).flatten(1)
