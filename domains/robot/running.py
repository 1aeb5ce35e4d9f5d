"""Running a policy: episodes in an environment, and against the clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from pydantic import Field

from domains.robot.environments import action_box, flat, make_environment, reset
from domains.robot.policy import ActionResult, Policy
from domains.robot.policyconfig import PolicyConfig
from domains.robot.policyfile import load_policy_file
from domains.robot.samplers import check_sampler
from suite.config import load_config
from suite.errors import InputError
from suite.noise import generator
from suite.progress import progress
from suite.records import emit

SOURCES = ("fresh", "warm", "queue", "hold")


class RunConfig(PolicyConfig):
    """Settings of `robot rollout` and `robot bench`.

    Attributes:
        max_steps: an episode ends after so many steps at the latest.
        environment: arguments of the environment, as `--set environment.obs_type=pixels_agent_pos`.
    """

    max_steps: int = 300
    environment: dict[str, Any] = Field(default_factory=dict)


C = TypeVar("C", bound=PolicyConfig)


def run_settings(model: type[C], given: dict[str, Any]) -> C:
    """Settings from file, `--set` and options."""
    names = ("sampler", "steps", "deadline_ms", "seed")
    options = {name: given[name] for name in names if given.get(name) is not None}
    config = load_config(model, given["config"], given["overrides"], options)
    check_sampler(config.sampler)
    return config


# --- rollout ----------------------------------------------------------------------------------------------------------


def rollout_verb(name: str, env: str, episodes: int, given: dict[str, Any]) -> None:
    """`robot rollout`: policy, environment -> rewards and interventions."""
    config = run_settings(RunConfig, given)
    file = load_policy_file(name)
    gif: Path | None = given["gif"]
    environment = make_environment(env, gif is not None, config.environment)
    rows, latencies = [], []
    frames: list[Any] = []
    with progress("Episodes", episodes, quiet=given["quiet"]) as update:
        policy = Policy(file, config, action_box(environment))
        for number in range(episodes):
            keep = frames if gif is not None and number == 0 else None
            row, results = episode(policy, environment, config.seed + number, config.max_steps, keep)
            rows.append(row)
            latencies += [result.latency for result in results]
            update(number + 1)
    if hasattr(environment, "close"):
        environment.close()
    if gif is not None:
        write_gif(frames, gif, 1 / file.card.fps)
    metrics = summary(rows, latencies, getattr(environment, "routes", None))
    record = {
        "policy": {"name": file.card.name, "sha256": file.sha256},
        "env": env,
        "settings": config,
        "episodes": rows,
        "metrics": metrics,
    }
    if not emit(record, given["json_to"]):
        for key, value in metrics.items():
            click.echo(f"{key:20} {value if not isinstance(value, float) else round(value, 4)}")


def episode(
    policy: Policy, environment: Any, seed: int, max_steps: int, frames: list[Any] | None = None
) -> tuple[dict[str, Any], list[ActionResult]]:
    """One episode; `reward_max` is the largest reward of a step, `reward_sum` their sum."""
    observation = reset(environment, seed)
    policy.reset(seed)
    rewards: list[float] = []
    results: list[ActionResult] = []
    success, route = False, None
    interventions: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    while len(results) < max_steps:
        result = policy.act(observed(policy, observation))
        observation, reward, terminated, truncated, about = environment.step(result.action.astype(np.float32))
        rewards.append(float(reward))
        results.append(result)
        interventions.update(result.interventions)  # type: ignore[arg-type]
        sources[str(result.source)] += 1
        success = success or bool(about.get("is_success", about.get("success", False)))
        route = about.get("route", route)
        if frames is not None:
            frames.append(environment.render())
        if terminated or truncated:
            break
    return {
        "seed": seed,
        "reward_max": max(rewards),
        "reward_sum": sum(rewards),
        "success": success,
        "steps": len(results),
        "nfe": sum(result.nfe for result in results),
        "sources": {name: sources[name] for name in SOURCES},
        "interventions": dict(interventions),
        "jerk": jerk(np.array([result.action for result in results]), policy.dt),
        **({} if route is None else {"route": list(route)}),
    }, results


def observed(policy: Policy, observation: Any) -> Any:
    """An environment's observation as the policy takes it: one vector, beside its cameras' pictures where it has cameras.

    A single picture is that of a single camera, whatever the environment calls it.

    Raises:
        InputError: a camera's picture is missing.
    """
    cameras = policy.card.cameras.names
    if not cameras:
        return flat(observation)
    shown = {k: v for k, v in observation.items() if np.ndim(v) == 3} if isinstance(observation, Mapping) else {}
    if len(cameras) == len(shown) == 1:  # there is no doubt which it is
        shown = {cameras[0]: next(iter(shown.values()))}
    missing = [name for name in cameras if name not in shown]
    if missing:
        raise InputError(
            f"the policy {policy.card.name} sees the camera {missing[0]!r}, and the environment shows none"
        )
    state = flat({key: value for key, value in observation.items() if np.ndim(value) < 3})
    return {"observation.state": state, **{name: shown[name] for name in cameras}}


def jerk(actions: Any, dt: float) -> float:
    """Root-mean-square third difference of the commands over dt^3, in action units per s^3."""
    return float(np.sqrt(np.mean(np.diff(actions, 3, axis=0) ** 2)) / dt**3) if len(actions) > 3 else 0.0


def summary(rows: list[dict[str, Any]], latencies: list[float], routes: int | None = None) -> dict[str, Any]:
    """Means over episodes, and the latency of all calls in ms.

    In an environment that counts its `routes`, `route_entropy` is that of the routes of successful episodes: 0 where
    all are the same, 1 where all are equally frequent.
    """
    steps = sum(row["steps"] for row in rows)
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row["interventions"])
    ms = 1000 * np.array(latencies)
    return {
        "reward_mean": float(np.mean([row["reward_max"] for row in rows])),
        "success_rate": float(np.mean([row["success"] for row in rows])),
        "nfe_per_action": sum(row["nfe"] for row in rows) / steps,
        "steps": steps,
        "p50_ms": float(np.percentile(ms, 50)),
        "p99_ms": float(np.percentile(ms, 99)),
        "jerk_rms": float(np.mean([row["jerk"] for row in rows])),
        "interventions": dict(totals),
        **(
            {}
            if routes is None
            else {"route_entropy": entropy([row["route"] for row in rows if "route" in row], routes)}
        ),
    }


def entropy(routes: list[list[int]], count: int) -> float:
    """Entropy of the routes over that of `count` equally frequent ones."""
    share = np.array(list(Counter(map(tuple, routes)).values())) / max(1, len(routes))
    return float(-(share * np.log(share)).sum() / np.log(count)) + 0.0


def write_gif(frames: list[Any], path: Path, seconds: float) -> None:
    """The frames `(rows, columns, 3)` uint8 as an animation."""
    from PIL import Image

    from suite.files import atomic_file

    if not frames or frames[0] is None:
        raise InputError(f"{path}: the environment gives no pictures (render returned nothing)")
    images = [Image.fromarray(np.asarray(frame, dtype=np.uint8)) for frame in frames]
    with atomic_file(path) as part:
        images[0].save(
            part, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 * seconds), loop=0
        )


# --- bench ------------------------------------------------------------------------------------------------------------


def bench_verb(name: str, calls: int, env: str | None, episodes: int, given: dict[str, Any]) -> None:
    """`robot bench`: latency of each sampler, or of the one named; with an environment also what it achieves there."""
    config = run_settings(RunConfig, given)
    file = load_policy_file(name)
    samplers = [given["sampler"]] if given["sampler"] else list(file.samplers())
    environment = None if env is None else make_environment(env, options=config.environment)
    rows = []
    with progress("Bench", len(samplers), quiet=given["quiet"]) as update:
        for number, sampler in enumerate(samplers, 1):
            chosen = config.model_copy(update={"sampler": sampler})
            row = bench_row(Policy(file, chosen), calls)
            if environment is not None:
                row |= achieved(Policy(file, chosen, action_box(environment)), environment, episodes, chosen)
            rows.append(row)
            update(number)
    about = {"config": config, "threads": torch.get_num_threads(), "policy": file.card.name, "sha256": file.sha256}
    if not emit({"rows": rows, "settings": {**about, "env": env}}, given["json_to"]):
        _print(rows)


def achieved(policy: Policy, environment: Any, episodes: int, config: RunConfig) -> dict[str, Any]:
    """Reward, success and variety of routes of some episodes."""
    rows = [episode(policy, environment, config.seed + i, config.max_steps)[0] for i in range(episodes)]
    found = summary(rows, [0.0], getattr(environment, "routes", None))
    kept = ("reward_mean", "success_rate", "route_entropy", "nfe_per_action", "jerk_rms")
    return {"episodes": episodes, **{name: found[name] for name in kept if name in found}}


def bench_row(policy: Policy, calls: int, pause_s: float = 0.0) -> dict[str, Any]:
    """Calls with observations that walk at random within the demonstrations' range, at their pace.

    Between two calls it sleeps for `pause_s`, as a control loop does. `cpu_ms` is the time for which the thread ran: what
    `latency_ms` exceeds it by, the system gave to others.
    """
    stats = policy.normalizer
    width = len(policy.card.observed)
    low, high, step = (
        v.double().numpy()[:width] for v in (stats.observation_low, stats.observation_high, stats.observation_step)
    )
    rng = generator(policy.config.seed, "bench")
    walk = torch.randn(calls, len(low), generator=rng).double().numpy() * 0.1 * step
    seen = (low + high) / 2
    size = policy.card.cameras.size
    pictures = {name: np.zeros((size, size, 3), np.uint8) for name in policy.card.cameras.names}
    results, ran = [], []
    for change in walk:
        seen = np.clip(seen + change, low, high)
        observation = observed(policy, {"state": seen, **pictures})
        began = time.thread_time()
        results.append(policy.act(observation))
        ran.append(1000 * (time.thread_time() - began))
        if pause_s:
            time.sleep(pause_s)
    ms = np.array([1000 * result.latency for result in results])
    due = policy.config.deadline_ms
    sources = Counter(str(result.source) for result in results)
    return {
        "sampler": policy.config.sampler,
        "calls": calls,
        "nfe": sum(result.nfe for result in results) / calls,
        "p50_ms": float(np.percentile(ms, 50)),
        "p99_ms": float(np.percentile(ms, 99)),
        "max_ms": float(ms.max()),
        "misses": 0 if due is None else int((ms > due).sum()),
        "sources": {name: sources[name] for name in SOURCES},
        "jerk_rms": jerk(np.array([result.action for result in results]), policy.dt),
        "cpu_p50_ms": float(np.percentile(ran, 50)),
        "cpu_p99_ms": float(np.percentile(ran, 99)),
        "cpu_ms": [round(value, 4) for value in ran],
        "latency_ms": [round(float(value), 4) for value in ms],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    extra = [name for name in ("reward_mean", "success_rate", "route_entropy") if name in rows[0]]
    head = "".join(f"{name.replace('_', ' '):>15}" for name in extra)
    click.echo(
        f"{'sampler':10}{'nfe':>8}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'misses':>8}{'jerk':>11}{head}  sources"
    )
    for row in rows:
        sources = ", ".join(f"{count} {name}" for name, count in row["sources"].items() if count)
        click.echo(
            f"{row['sampler']:10}{row['nfe']:8.2f}{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['max_ms']:9.2f}"
            f"{row['misses']:8}{row['jerk_rms']:11.4g}"
            + "".join(f"{row[name]:15.3f}" for name in extra)
            + f"  {sources}"
        )
