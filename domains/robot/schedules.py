"""Schedules of a process that remember the times they were asked for: a control loop asks for the same few."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from suite.process import Process, Schedule

_FEW = 64  # numbers in a tensor of times that is worth remembering
_MOST = 512  # times remembered; then all are forgotten


def remembered(process: Process) -> Process:
    """The process with schedules that remember the times they were asked for."""
    alpha, sigma = _memo(process.alpha), _memo(process.sigma)
    return replace(process, alpha=alpha, sigma=sigma)


def _memo(schedule: Schedule) -> Schedule:
    known: dict[tuple[object, ...], Tensor] = {}

    def look_up(t: Tensor) -> Tensor:
        if t.numel() > _FEW or t.requires_grad or t.device.type != "cpu":
            return schedule(t)
        key = (t.dtype, t.shape, *t.flatten().tolist())
        value = known.get(key)
        if value is None:
            if len(known) >= _MOST:
                known.clear()
            value = known[key] = schedule(t)
        return value

    return look_up
