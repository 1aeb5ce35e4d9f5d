"""The shipped robot policies: PushT, a block that is moved by hand, avoidance, and deadlines beside a busy core.

    python benchmarks/robot_policies.py [pusht|teleport|avoidance|deadline|experts] [--episodes N] [--json FILE]

pusht      mean of the largest reward (coverage / 0.95, at most 1) over episodes of gym-pusht from seed 100000
teleport   the block is put elsewhere after 60 steps, with the policy's own check for jumps switched off, so that only the
           sampler can notice; recovered: a reward of 0.9 or more within the next 100, 150 or 200 steps
avoidance  success, entropy of the routes over log 24, and jerk, of as many robots at once; `--policy FILE --sampler "ddim 1"`
           for a network trained with `noise.mean=3.69 noise.std=0 stream.share=0`: plain regression
deadline   2,000 calls of the PushT policy due after 20 ms, 5 ms apart, while another process keeps a core busy; no policy can
           answer while the system gives it no core, so a control loop has real-time priority:
           `chrt --reset-on-fork --fifo 10 python benchmarks/robot_policies.py deadline`
experts    one evaluation of a network of mixed experts (4, of which 2 are used) for one robot, with the experts fused for ten
           steps and without; random weights, which the times do not depend on; ten steps of each way in turns, the
           fastest ten of each: on a shared machine the others tell of its other work

The seeds are those of no choice made for the policies: the settings were chosen on PushT seeds 500 to 511 and, for the moved
block, 300000 to 300015, and on avoidance seeds from 1000. Which sampler does best in avoidance is read off the table itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.robot.environments import action_box, make_environment
from domains.robot.expertcache import ExpertCache
from domains.robot.network import ActionNetwork
from domains.robot.policy import Policy
from domains.robot.policyconfig import GuardConfig, PolicyConfig
from domains.robot.running import bench_row, entropy, episode, jerk, summary
from domains.robot.tasks.avoidance import Avoidance
from suite.grid import time_grid
from suite.process import process
from suite.records import write_json

SETTINGS: dict[str, dict[str, Any]] = {
    "ddim 10": {"sampler": "ddim"},
    "ddim 3": {"sampler": "ddim", "steps": 3},
    "rti 3": {"sampler": "rti"},
    "warm 3": {"sampler": "warm"},
    "warm 3, every 4 steps": {"sampler": "warm", "execute": 4},
    "stream 3": {"sampler": "stream"},
    "anchor 3": {"sampler": "anchor"},
}
REGRESSION: dict[str, dict[str, Any]] = {
    "ddim 1": {"sampler": "ddim", "steps": 1},
    "ddim 1, every step": {"sampler": "ddim", "steps": 1, "execute": 1},
}
"""For a network trained at the noisiest level only, whose answer is the mean of all demonstrations: see the task avoidance."""


def pusht(episodes: int, chosen: list[str], policy: str) -> list[dict[str, Any]]:
    environment = make_environment("gym_pusht/PushT-v0")
    rows = []
    for name in chosen:
        runner = Policy(policy, PolicyConfig(**(SETTINGS | REGRESSION)[name]), action_box(environment))
        done = [episode(runner, environment, 100000 + i, 300) for i in range(episodes)]
        found = summary([row for row, _ in done], [r.latency for _, results in done for r in results])
        rows.append({"sampler": name, "episodes": episodes, **found})
        print(rows[-1], flush=True)
    return rows


def teleport(episodes: int, chosen: list[str], policy: str) -> list[dict[str, Any]]:
    rows = []
    for name in chosen:
        environment = make_environment("gym_pusht/PushT-v0").unwrapped  # without its limit of 300 steps
        config = PolicyConfig(**(SETTINGS | REGRESSION)[name], guard=GuardConfig(teleport=1e6))
        runner = Policy(policy, config, action_box(environment))
        found = [_moved(environment, runner, 200000 + i) for i in range(episodes)]
        rewards, steps, evaluations = zip(*found, strict=True)
        within = {limit: sum(step <= limit for step in steps) for limit in (100, 150, 200)}
        rows.append({"sampler": name, "episodes": episodes, "recovered_within": within, "steps": steps})
        rows[-1] |= {"reward_mean": float(np.mean(rewards)), "nfe_per_action": float(np.mean(evaluations))}
        print(rows[-1], flush=True)
    return rows


def _moved(environment: Any, policy: Policy, seed: int) -> tuple[float, int, float]:
    """After the block was moved at step 60: largest reward, steps to one of 0.9 (999: never), evaluations per action."""
    seen, _ = environment.reset(seed=seed)
    policy.reset(seed)
    rng = np.random.default_rng(seed)
    best, recovered, evaluations = 0.0, 999, 0
    for step in range(260):
        if step == 60:
            environment.block.angle = rng.uniform(-np.pi, np.pi)
            environment.block.position = tuple(rng.uniform(150, 360, 2))
            environment.block.velocity, environment.block.angular_velocity = (0, 0), 0
            environment.space.step(1e-4)
            seen = environment.get_obs()
        result = policy.act(seen)
        evaluations += result.nfe
        seen, reward, _, _, _ = environment.step(result.action)
        if step >= 60:
            best = max(best, float(reward))
            recovered = min(recovered, step - 59) if reward >= 0.9 else recovered
        if best >= 1:
            break
    return best, recovered, evaluations / (step + 1)


def avoidance(episodes: int, chosen: list[str], policy: str) -> list[dict[str, Any]]:
    rows = []
    for name in chosen:
        robots = [Avoidance() for _ in range(episodes)]
        seen = np.stack([robot.reset(50000 + i)[0] for i, robot in enumerate(robots)])
        box = (Avoidance.action_space.low, Avoidance.action_space.high)
        runner = Policy(policy, PolicyConfig(**(SETTINGS | REGRESSION)[name], seed=50000), box)
        actions: list[list[Any]] = [[] for _ in robots]
        routes: list[list[int]] = []
        live, evaluations, steps = set(range(episodes)), 0, 0
        while live and steps < 160:
            result = runner.act(seen)
            evaluations, steps = evaluations + result.nfe, steps + 1
            for i in list(live):
                actions[i].append(result.action[i])
                seen[i], _, done, _, about = robots[i].step(result.action[i])
                if done:
                    live.discard(i)
                    routes += [list(about["route"])] if about["is_success"] else []
        row = {"sampler": name, "episodes": episodes, "success_rate": len(routes) / episodes}
        row |= {"route_entropy": entropy(routes, 24), "nfe_per_action": evaluations / steps}
        rows.append({**row, "jerk_rms": float(np.mean([jerk(np.array(a), runner.dt) for a in actions]))})
        print(rows[-1], flush=True)
    return rows


def _busy() -> None:
    while True:
        sum(range(100000))


def deadline(calls: int, chosen: list[str], policy: str) -> list[dict[str, Any]]:
    load = multiprocessing.get_context("spawn").Process(target=_busy, daemon=True)
    load.start()
    rows = []
    try:
        time.sleep(1)
        for name in chosen:
            row = bench_row(Policy(policy, PolicyConfig(**(SETTINGS | REGRESSION)[name], deadline_ms=20)), calls, 0.005)
            times = list(zip(row.pop("latency_ms"), row.pop("cpu_ms"), strict=True))
            late = [(round(wall, 1), round(ran, 1)) for wall, ran in times if wall > 25]
            row |= {"later_than_25_ms": len(late), "of_these_running_for_20_ms": sum(ran > 20 for _, ran in late)}
            row |= {"late_wall_and_running_ms": late, "running_max_ms": max(ran for _, ran in times)}
            rows.append({**row, "sampler": name})
            print(rows[-1], flush=True)
    finally:
        load.kill()
    return rows


def experts(calls: int, chosen: list[str], policy: str) -> list[dict[str, Any]]:
    rows = []
    for width, blocks in ((64, 4), (128, 4), (128, 6), (256, 4)):
        torch.manual_seed(0)
        shape = {"action_dim": 2, "horizon": 16, "condition_dim": 16, "width": width, "blocks": blocks}
        net = ActionNetwork("mode", "edm", process("vp-cosine"), 0.5, (0.01, 40.0), shape).eval().requires_grad_(False)
        grid = time_grid(net.process, 10, start=0.98)
        ways = {"plain": net.denoiser(), "cached": ExpertCache(net, grid).denoiser()}
        z, condition = torch.randn(1, 2, 16), torch.randn(1, 16)
        steps = [t.reshape(1, 1, 1) for t in grid[:10]]
        times: dict[str, list[float]] = {name: [] for name in ways}
        deviation = 0.0
        for _ in range(calls):
            answers = []
            for name, way in ways.items():  # ten steps each, as a sampler takes them
                began = time.perf_counter()
                found = [way(z, t, condition) for t in steps]
                times[name].append((time.perf_counter() - began) / len(steps))
                answers.append(torch.cat(found))
            deviation = max(deviation, float((answers[0] - answers[1]).abs().max()))
        plain, cached = (1000 * float(np.min(times[name])) for name in ways)
        halves = [float(np.median(times[name])) for name in ways]
        row = {"width": width, "blocks": blocks, "parameters": sum(p.numel() for p in net.parameters())}
        row |= {"plain_ms": plain, "cached_ms": cached, "times_faster": plain / cached, "deviation": deviation}
        row["times_faster_median"] = halves[0] / halves[1]
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    tasks = {
        "pusht": (pusht, 50, "pusht"),
        "teleport": (teleport, 40, "pusht"),
        "avoidance": (avoidance, 400, "avoidance"),
        "deadline": (deadline, 2000, "pusht"),
        "experts": (experts, 100, ""),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=tasks, help="default all")
    parser.add_argument("--episodes", type=int, help="or calls, for deadline")
    parser.add_argument("--sampler", action="append", choices=SETTINGS | REGRESSION, help="repeatable; default all")
    parser.add_argument("--policy")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for task, (work, count, policy) in tasks.items():
        if given.task in (None, task):
            print(f"== {task}")
            found[task] = work(given.episodes or count, given.sampler or list(SETTINGS), given.policy or policy)
    if given.json:
        write_json({"tasks": found}, given.json)


if __name__ == "__main__":
    main()
