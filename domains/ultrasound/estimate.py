"""Grey values without haze, by any method: of a whole cine, or frame by frame of a live one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.ultrasound.certainty import steady, taken
from domains.ultrasound.classical import CLASSICAL, REFERENCE
from domains.ultrasound.grid import Reduction, as_tensor, grid_around
from domains.ultrasound.live import JointEngine, RestoreEngine, Stream
from domains.ultrasound.lowrank import nuclear
from domains.ultrasound.physics import DYNAMIC_RANGE_DB, compress, decompress
from domains.ultrasound.restoration import REGENERATE, restore
from domains.ultrasound.separation import JOINT, Separation, joint
from domains.ultrasound.settings import RESIDUAL, DehazeConfig
from suite.errors import InputError
from suite.prior import Prior

Grey = NDArray[np.float32]
Clock = Callable[[str], AbstractContextManager[Any]]

STEPS, SAMPLING_STEPS, REGENERATING_STEPS = 1, 20, 6
"""Network evaluations of `restore`: of one estimate, of each of several samples, and of `regenerate`."""


def remaining(
    grey: Grey,
    sector: NDArray[np.bool_],
    grid: Reduction,
    method: str,
    priors: dict[str, Prior],
    config: DehazeConfig,
    identity: str,
    dynamic_range_db: float,
    clock: Clock,
) -> tuple[Grey, int]:
    """Grey values 0..1 `(frame, row, column)` without the haze, never brighter than before, and the network evaluations."""
    if method in CLASSICAL:
        with clock("operator"):
            haze = grey - CLASSICAL[method](grey, sector)
        return np.clip(grey - config.strength * np.clip(haze, 0, None), 0, 1), 0
    if config.video != "shared":
        live = LiveDehazer(grid, priors, config, method, dynamic_range_db, identity=identity, clock=clock)
        frames = [out for frame in grey if (out := live.push(frame)) is not None]
        return np.stack([*frames, *live.flush()]), live.evaluations
    device = next(next(iter(priors.values())).net.parameters()).device
    coarse = grid.reduce(as_tensor(grey, device))
    common: dict[str, Any] = {"seed": config.seed, "identity": identity}
    if method in RESIDUAL:
        steps = config.steps or _steps(method, config.samples)
        if method == "regenerate" and steps < 2:
            raise InputError("regenerate needs at least 2 steps: one to predict, the others to regenerate")
        found, evaluations = _restored(coarse, priors, config, steps, clock, method, **common)
        return without(
            grey, grid, taken(found, config.certain, config.threshold, config.window), config.strength
        ), evaluations
    guess, first = _begin(grey, coarse, sector, grid, priors, config, clock, **common)
    steps_left = None if config.steps is None else config.steps - first
    if method == "nuclear":
        options = _nuclear_options(config.options)
        found, evaluations = nuclear(
            coarse,
            guess,
            priors["tissue"],
            noise_std=config.noise_std,
            dynamic_range_db=dynamic_range_db,
            steps=steps_left,
            clock=clock,
            **options,
            **common,
        )
        return without(grey, grid, steady(found, config.window), config.strength), first + evaluations
    share, evaluations = joint(
        coarse,
        guess,
        separation(priors, config, dynamic_range_db, clock),
        method=method,
        steps=steps_left,
        options=dict(config.options),
        chunk=config.batch,
        **common,
    )
    return shared_out(grey, grid, share, dynamic_range_db), first + evaluations


def _steps(method: str, samples: int) -> int:
    if method == "regenerate":
        return REGENERATING_STEPS
    return STEPS if samples == 1 else SAMPLING_STEPS


def _nuclear_options(options: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(options) - {"weight", "start"})
    if unknown:
        raise InputError(f"method nuclear: there is no option {unknown[0]!r}; it has weight and start")
    return {name: float(value) for name, value in options.items()}


def _restored(
    coarse: Tensor,
    priors: dict[str, Prior],
    config: DehazeConfig,
    steps: int,
    clock: Clock,
    method: str,
    *,
    seed: int,
    identity: str,
) -> tuple[Tensor, int]:
    return restore(
        coarse,
        priors["restore"],
        second=priors.get("second"),
        window=config.window,
        steps=steps,
        chunk=config.batch,
        clock=clock,
        regenerate=REGENERATE if method == "regenerate" else None,
        seed=seed,
        identity=identity,
    )


def _begin(
    grey: Grey,
    coarse: Tensor,
    sector: NDArray[np.bool_],
    grid: Reduction,
    priors: dict[str, Prior],
    config: DehazeConfig,
    clock: Clock,
    **common: Any,
) -> tuple[Tensor, int]:
    """The estimate that a posterior method starts from, on the grid, and the network evaluations it took."""
    if config.begin == "background" or config.steps == 1:
        return grid.reduce(as_tensor(CLASSICAL[REFERENCE](grey, sector), coarse.device)), 0
    found, evaluations = _restored(coarse, priors, config, STEPS, clock, "restore", **common)
    return (coarse - taken(found, config.certain, config.threshold, config.window)).clamp_min(0), evaluations


def separation(priors: dict[str, Prior], config: DehazeConfig, dynamic_range_db: float, clock: Clock) -> Separation:
    """The joint posterior of a run's priors and settings."""
    return Separation(priors["tissue"], priors["haze"], config.strength, config.noise_std, dynamic_range_db, clock)


def without(grey: Grey, grid: Reduction, haze: Tensor, strength: float) -> Grey:
    """The picture less haze found on the grid, as grey levels."""
    return np.clip(grey - strength * grid.restore(haze).cpu().numpy(), 0, None)


def shared_out(grey: Grey, grid: Reduction, share: Tensor, dynamic_range_db: float) -> Grey:
    """The picture with this share of its envelope, found on the grid."""
    kept = grid.restore(share).cpu().numpy()
    return compress(kept * decompress(grey, dynamic_range_db), dynamic_range_db).astype(np.float32)


class LiveDehazer:
    """A live cine, frame by frame: `push` a frame, and the one that is ready comes back.

        live = LiveDehazer.of(sector, priors, config)
        for frame in camera:
            out = live.push(frame)          # None for the first `live.latency` frames
        rest = live.flush()

    Args:
        grid: between the picture and the networks' grid.
        priors, config: as `load_priors` and `load_config` give them; `config.video` is `warm` or `rolling`.
        method: `restore`, `pigdm`, `dps` or `projection`.
        dynamic_range_db: of the log compression.
        identity: with the seed decides the noise.

    Attributes:
        latency: frames that go in before one comes out.
    """

    def __init__(
        self,
        grid: Reduction,
        priors: dict[str, Prior],
        config: DehazeConfig,
        method: str = "restore",
        dynamic_range_db: float = DYNAMIC_RANGE_DB,
        *,
        identity: str = "live",
        clock: Clock = lambda _: nullcontext(),
    ) -> None:
        self.grid, self.config, self.dynamic_range_db = grid, config, dynamic_range_db
        self.joint = method in JOINT
        networks = [priors[name] for name in ("restore", "second") if name in priors]
        self.device = next(next(iter(priors.values())).net.parameters()).device
        engine: RestoreEngine | JointEngine
        if self.joint:
            problem = separation(priors, config, dynamic_range_db, clock)
            engine = JointEngine(
                problem,
                networks,
                partial(taken, certain=config.certain, threshold=config.threshold),
                method,
                dict(config.options),
                config.seed,
            )
        else:
            engine = RestoreEngine(networks, clock)
        self.stream = Stream(
            engine, config.video, steps=config.steps, window=config.window, seed=config.seed, identity=identity
        )
        self.latency = self.stream.latency
        self._waiting: deque[Grey] = deque()

    @classmethod
    def of(cls, sector: NDArray[np.bool_], priors: dict[str, Prior], config: DehazeConfig, **more: Any) -> LiveDehazer:
        """For pictures whose echoes lie within a mask `(row, column)`."""
        return cls(grid_around(sector), priors, config, **more)

    @property
    def evaluations(self) -> int:
        """Of the network, so far."""
        return self.stream.evaluations

    @torch.no_grad()
    def push(self, frame: Grey) -> Grey | None:
        """Take a frame `(row, column)` of grey values 0..1; the dehazed one that is ready, or None."""
        self._waiting.append(frame)
        coarse = self.grid.reduce(as_tensor(frame[None], self.device))[0]
        found = self.stream.push(coarse)
        return None if found is None else self._ready(found)

    @torch.no_grad()
    def flush(self) -> list[Grey]:
        """The frames still on their way, at the end of a cine."""
        return [self._ready(found) for found in self.stream.flush()]

    def _ready(self, found: Tensor) -> Grey:
        frame = self._waiting.popleft()[None]
        if self.joint:
            return shared_out(frame, self.grid, found[None], self.dynamic_range_db)[0]
        haze = taken(found[None], self.config.certain, self.config.threshold)
        return without(frame, self.grid, haze, self.config.strength)[0]
