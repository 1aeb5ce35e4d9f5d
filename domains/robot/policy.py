"""The policy a control loop calls: `act` gives a finite command inside all limits, and says where it came from.

Chain: a chunk sampled now (`fresh`, or `warm` when it continues the previous one), else the rest of the previous chunk
(`queue`), else a jerk-limited brake (`hold`). Nothing but torch and NumPy runs in the loop.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from domains.robot.constraints import FROZEN, Constraint, prefix
from domains.robot.eyes import Eyes, pictures_of
from domains.robot.guard import Guard, Vector
from domains.robot.policyconfig import PolicyConfig, limits_of
from domains.robot.policyfile import PolicyFile, load_policy_file
from domains.robot.samplers import Previous, Sampled, Sampler
from domains.robot.senses import Senses
from domains.robot.vision import Pictures
from domains.robot.watched import Pace
from suite.errors import InputError
from suite.noise import Noise

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ActionResult:
    """One answer of a policy; for a batch `source` and `interventions` are lists.

    Attributes:
        action: `(A,)` or `(B, A)` float64, finite and inside all limits.
        chunk: `(H, A)` or `(B, H, A)`, the plan in physical units, from now on, before the guard; NaN where there is none.
        nfe: network evaluations, the batch counted once.
        latency: seconds from the call to the answer.
        source: `fresh`, `warm`, `queue` or `hold`.
        interventions: how often which check changed something: `position`, `velocity`, `acceleration`, `jerk`,
            `braking`, `non_finite`, `missing`, `stale`, `range`, `teleport`, `deadline`.
    """

    action: Vector
    chunk: Vector
    nfe: int
    latency: float
    source: str | list[str]
    interventions: dict[str, int] | list[dict[str, int]]


class Policy:
    """A trained policy in a control loop, for one robot or a batch of them.

    Args:
        source: a `PolicyFile`, the name of a file, or of a shipped policy.
        config: see `PolicyConfig`.
        box: position box `(low, high)` of the robot or environment; the config's own values count more.

    Raises:
        InputError: the file is unusable, or the settings do not fit it.
    """

    def __init__(
        self,
        source: PolicyFile | str | Path,
        config: PolicyConfig | None = None,
        box: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        self.file = source if isinstance(source, PolicyFile) else load_policy_file(source)
        self.config = config or PolicyConfig()
        self.card, self.normalizer = self.file.card, self.file.normalizer
        self.dt = 1 / self.card.fps
        self.sampler = self.file.sampler(
            self.config.sampler, self.config.steps, self.config.warm_ratio, self.config.cache
        )
        self.execute = self._interval()
        self.limits = limits_of(self.file, self.config.guard, box)
        self.counters: Counter[str] = Counter()
        self._after = Pace()  # what follows the sampler within a call
        self._warm_up()
        self.reset(self.config.seed)

    def _interval(self) -> int:
        """Steps between two chunks."""
        asked, name = self.config.execute, self.sampler.name
        if asked is not None and asked > self.card.horizon:
            raise InputError(f"execute is {asked}, and the policy {self.card.name} plans {self.card.horizon} steps")
        if name == "stream":
            stride = self.sampler.stride or self.card.execute
            if asked not in (None, stride):
                raise InputError(f"execute is {asked}, and the buffer of the sampler stream moves by {stride} steps")
            return stride
        return asked or (1 if self.sampler.warm else self.card.execute)

    def _warm_up(self) -> None:
        """First calls are slow; they must not count as the pace of the network."""
        condition = torch.zeros(1, self.card.network["condition_dim"])
        previous = None
        Eyes(self.file.net.encoder, 1).warm_up()
        for _ in range(3):
            self.sampler.pace.reset()
            drawn = self.sampler.draw(condition, Noise.of(0), previous)
            previous = None if drawn.chunk is None else Previous(drawn.chunk, drawn.buffer)

    def reset(self, seed: int | None = None) -> None:
        """Forget the episode: history, plan, last command. The batch size is that of the next observation."""
        self.seed = self.config.seed if seed is None else seed
        self._batch = 0

    def _begin(self, batch: int) -> None:
        card = self.card
        self._batch = batch
        self._noise = Noise.of(self.seed, [str(i) for i in range(batch)])
        self._senses = Senses(
            self.normalizer, card.observation_steps, batch, self._stale_after, self.config.guard.teleport
        )
        self._plan = torch.full((batch, len(card.action), card.horizon), torch.nan)
        self._age = np.full(batch, card.horizon)  # steps since the plan was made; horizon: there is none
        self._buffer = torch.zeros_like(self._plan)  # of the sampler stream
        self._buffered = np.zeros(batch, dtype=bool)
        self._guard = Guard(self.limits, self.dt)
        self._eyes = Eyes(self.file.net.encoder, batch)

    @property
    def _stale_after(self) -> float:
        return self.config.guard.stale_after_s or 2 * self.dt

    # --- the call ---

    def act(
        self,
        observation: Any,
        deadline_s: float | None = None,
        timestamp: float | None = None,
        known: ArrayLike | None = None,
    ) -> ActionResult:
        """The next command.

        Args:
            observation: `(O,)` or `(B, O)`; a mapping of `observation.*` features, with the pictures of every camera of the
                policy (`observation.images.NAME` or `NAME`, rows x columns x 3 or LeRobot's 3 x rows x columns); or None when
                it is missing.
            deadline_s: the answer is due so many seconds after the call; default that of the config.
            timestamp: when the observation was made, by `time.monotonic()`.
            known: goal, `(H, A)` or `(B, H, A)`: actions from now on that the plan shall agree with, NaN where it is free.

        Raises:
            InputError: the observation has another number of dimensions or items than before.
        """
        collecting = gc.isenabled()
        gc.disable()  # a collection of garbage takes as long as a deadline; it can come between two calls
        try:
            return self._act(observation, deadline_s, timestamp, known)
        finally:
            if collecting:
                gc.enable()

    def _act(
        self, observation: Any, deadline_s: float | None, timestamp: float | None, known: ArrayLike | None
    ) -> ActionResult:
        began = time.perf_counter()
        due = deadline_s if deadline_s is not None else (self.config.deadline_ms or 0) / 1000 or None
        values, pictures, single = self._values(observation)
        notes: list[Counter[str]] = [Counter() for _ in range(self._batch)]
        usable = self._senses.take(values, timestamp, notes)
        self._eyes.look(pictures, usable)
        self._age[self._senses.jumped] = self.card.horizon
        self._start_guard(usable)
        goal = self._goal(known)
        nfe, sources = self._replan(usable, None if due is None else began + due - self._after.seconds, notes, goal)
        sampled = time.perf_counter()
        request = self._request(sources)
        action, reasons = self._guard(request)
        for item, reason in enumerate(reasons):
            notes[item].update(+reason)
        chunk = self._chunk()
        self._age = np.minimum(self._age + 1, self.card.horizon)
        for note in notes:
            self.counters.update(note)
        self._after.learn(time.perf_counter() - sampled)
        found = [dict(note) for note in notes]
        latency = time.perf_counter() - began
        if single:
            return ActionResult(action[0], chunk[0], nfe, latency, sources[0], found[0])
        return ActionResult(action, chunk, nfe, latency, sources, found)

    def _values(self, observation: Any) -> tuple[Vector | None, Pictures | None, bool]:
        """The observation as `(B, O)`, None when it is missing, its pictures, and whether it came without a batch."""
        pictures = None
        if isinstance(observation, Mapping):
            pictures = pictures_of(observation, self.card.cameras)
            lacking = pictures is None and self.card.vision is not None
            observation = None if lacking else self.joined(observation)
        elif observation is not None and self.card.vision is not None:
            names = ", ".join(self.card.cameras.names)
            raise InputError(
                f"the policy {self.card.name} sees the cameras {names}: give a mapping with their pictures"
            )
        array = None if observation is None else np.asarray(observation, dtype=np.float64)
        if array is None or array.size == 0:
            if not self._batch:
                self._begin(1)
                self._single = True
            return None, None, self._single
        single = array.ndim == 1
        width = len(self.card.observed)
        if array.ndim not in (1, 2) or array.shape[-1] != width:
            raise InputError(
                f"the policy {self.card.name} takes observations of {width} numbers ({', '.join(self.card.observed)}), "
                f"not of shape {array.shape}"
            )
        array = np.atleast_2d(array)
        if not self._batch:
            self._begin(len(array))
            self._single = single
        if len(array) != self._batch:
            raise InputError(f"the batch has {len(array)} items and had {self._batch}; call reset between episodes")
        if pictures is not None and pictures.shape[:-4] not in ((), (len(array),)):
            raise InputError(f"{pictures.shape[0]} pictures of each camera came with {len(array)} observations")
        return (np.concatenate([array, self._last(array)], axis=1) if self.card.commands else array), pictures, single

    def _last(self, observation: Vector) -> Vector:
        """The last commands `(B, A)`; before the first one, where the robot is, or the usual first command."""
        if self._guard.position is not None:
            return self._guard.position
        if self.card.position is not None:
            return observation[:, self.card.position]
        usual = self.normalizer.action_start.double().numpy()
        return np.broadcast_to(usual, (len(observation), len(usual)))

    def joined(self, features: Mapping[str, Any]) -> Vector | None:
        """The observation `(..., O)` of a mapping: its `observation.*` vectors in the order of the card; None: it has none."""
        names = list(dict.fromkeys(f"observation.{name.rsplit('.', 1)[0]}" for name in self.card.observed))
        if any(name not in features for name in names):
            names = [name for name in ("observation.state", "observation.environment_state") if name in features]
        parts = [np.asarray(features[name], dtype=np.float64) for name in names]
        return np.concatenate(parts, axis=-1) if parts else None

    def _start_guard(self, usable: Mask) -> None:
        """At the first call begin at rest where the robot is, or without knowing it, at the usual first command."""
        if self._guard.position is not None:
            return
        usual = np.broadcast_to(self.normalizer.action_start.double().numpy(), (self._batch, len(self.card.action)))
        if self.card.position is not None:
            seen = self._senses.latest[:, self.card.position]
            self._guard.start(np.where(usable[:, None], seen, usual))
        elif not usable.all():
            self._guard.start(usual)

    def _goal(self, known: ArrayLike | None) -> Constraint | None:
        """The known actions of the plan, and with `guided` the guard's velocity, as a constraint."""
        shape = (self.card.horizon, len(self.card.action))
        if known is None and not self.config.guided:
            return None
        values = np.full(shape, np.nan) if known is None else np.asarray(known, dtype=np.float64)
        if values.shape[-2:] != shape or values.ndim not in (2, 3):
            raise InputError(
                f"the known actions have the shape {values.shape}; (horizon {self.card.horizon}, "
                f"actions {len(self.card.action)}) is needed, with NaN where the plan is free"
            )
        wide = np.broadcast_to(values, (self._batch, *values.shape[-2:]))
        free = torch.from_numpy(np.isnan(wide).copy()).transpose(1, 2)
        network = self.normalizer.action(torch.from_numpy(np.nan_to_num(wide)).float()).transpose(1, 2)
        std = torch.where(free, torch.inf, FROZEN * self.card.sigma_data)
        return Constraint(network, std, self._rate if self.config.guided else None)

    @property
    def _rate(self) -> Tensor:
        """The guard's velocity as a change per step, in network units."""
        step = torch.from_numpy(self.limits.velocity * self.dt).float()
        return (self.normalizer.action(step) - self.normalizer.action(torch.zeros_like(step))).abs()

    def _replan(
        self, usable: Mask, deadline: float | None, notes: list[Counter[str]], goal: Constraint | None
    ) -> tuple[int, list[str]]:
        """Sample where it is time to; returns the evaluations and the source of each item's action."""
        planned = self._age < self.card.horizon
        sources = ["queue" if there else "hold" for there in planned]
        due = usable & (self._age >= self.execute)
        match self.sampler.name:
            case "rti" | "warm":
                continued = planned
            case "stream":  # the buffer has moved on with the robot only if it is used at its own pace
                continued = planned & self._buffered & (self._age == self.execute)
            case _:
                continued = np.zeros_like(planned)
        nfe = 0
        for items in (np.flatnonzero(due & continued), np.flatnonzero(due & ~continued)):
            if not len(items):
                continue
            drawn = self._draw(items, bool(continued[items[0]]), deadline, goal)
            nfe += drawn.nfe
            for row, item in enumerate(items):
                sources[item] = self._accept(int(item), row, drawn, notes[item]) or sources[item]
        return nfe, sources

    def _draw(self, items: Any, continued: bool, deadline: float | None, goal: Constraint | None) -> Sampled:
        """New chunks for some items of the batch."""
        rows = torch.from_numpy(items)
        noise = Noise([self._noise.generators[i] for i in items])
        previous = Previous(self._shifted()[rows], self._buffer[rows]) if continued else None
        known = None if goal is None else goal.of(rows)
        return self.sampler.draw(self._condition()[rows], noise, previous, deadline, self._origin(rows), known)

    def _condition(self) -> Tensor:
        """What the network is conditioned on, `(B, K)`."""
        return torch.cat([self._senses.condition(), self._eyes.features], dim=1)

    def _origin(self, rows: Tensor) -> Tensor | None:
        """Where the robot is, in network units of the action; None where the card does not know."""
        if self.card.position is None:
            return None
        return self.normalizer.action(torch.from_numpy(self._senses.latest[:, self.card.position]).float())[rows]

    def _accept(self, item: int, row: int, drawn: Sampled, note: Counter[str]) -> str:
        """Take over an item's chunk; returns its source, or nothing when the chunk is not used."""
        if not drawn.complete:
            note["deadline"] += 1
        warm = not bool(drawn.restarted[row])
        self._buffered[item] = False
        if drawn.chunk is None or not (drawn.complete or warm or self._age[item] >= self.card.horizon):
            return ""  # a chunk cut short far from clean is worse than the plan that there is
        chunk = drawn.chunk[row]
        if not bool(self.normalizer.physical_action(chunk.T).isfinite().all()):
            note["non_finite"] += 1
            return ""
        self._plan[item], self._age[item] = chunk, 0
        if drawn.buffer is not None:
            self._buffer[item], self._buffered[item] = drawn.buffer[row], True
        return "warm" if warm else "fresh"

    def _shifted(self) -> Tensor:
        """The plans from now on, `(B, A, H)`, the last action repeated; zero where there is none."""
        index = torch.from_numpy(self._age)[:, None] + torch.arange(self.card.horizon)
        index = index.clamp(max=self.card.horizon - 1)[:, None].expand_as(self._plan)
        return self._plan.gather(2, index).nan_to_num(0.0)

    def _request(self, sources: list[str]) -> Vector:
        if self._guard.position is None:
            self._guard.start(None)
        request = self._chunk()[:, 0]
        for item, source in enumerate(sources):
            if source == "hold":
                request[item] = self._guard.brake()[item]
        return request

    def _chunk(self) -> Vector:
        """The plans from now on in physical units `(B, H, A)`, NaN where there is none."""
        plan = self._shifted()
        plan[torch.from_numpy(self._age >= self.card.horizon)] = torch.nan
        return np.asarray(self.normalizer.physical_action(plan.transpose(1, 2)).double().numpy())

    # --- LeRobot's shapes ---

    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """The next command `(B, A)` float32, guarded, for a batch of `observation.*` features `(B, O)`."""
        return torch.as_tensor(np.atleast_2d(self.act(batch).action), dtype=torch.float32)

    def predict_action_chunk(
        self, batch: Mapping[str, Any], inference_delay: int = 0, prev_chunk_left_over: Tensor | None = None
    ) -> Tensor:
        """A new chunk `(B, H, A)` float32, before the guard; the observation enters the history.

        With what is left of the previous chunk `(B, T, A)` this is real-time chunking: the first `inference_delay`
        actions are those that will be executed meanwhile, and the rest continues them.
        """
        values, pictures, _ = self._values(batch)
        usable = self._senses.take(values, None, [Counter() for _ in range(self._batch)])
        self._eyes.look(pictures, usable)
        constraint = None
        if prev_chunk_left_over is not None:
            left = torch.as_tensor(prev_chunk_left_over, dtype=torch.float32)
            left = left if left.ndim == 3 else left[None]
            index = torch.arange(self.card.horizon).clamp_max(left.shape[1] - 1)
            chunk = self.normalizer.action(left[:, index]).transpose(1, 2)
            overlap = min(left.shape[1], self.card.horizon)
            constraint = prefix(chunk, inference_delay, overlap, self.card.sigma_data)
        origin = self._origin(torch.arange(self._batch))
        drawn = self._chunker().draw(self._condition(), self._noise, None, None, origin, constraint)
        if drawn.chunk is None:
            raise ValueError("a sampler without a deadline always gives a chunk")
        return self.normalizer.physical_action(drawn.chunk.transpose(1, 2))

    def _chunker(self) -> Sampler:
        """The sampler of whole chunks: the policy's own, or DDIM where that one lives on the previous chunk."""
        lives = self.sampler.name in ("rti", "warm", "stream")
        return self.file.sampler("ddim") if lives else self.sampler
