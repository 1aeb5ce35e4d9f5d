"""The demonstration: the shipped policy in PushT, or where gym-pusht is absent in a scene whose block does not move."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from domains.robot.environments import action_box, make_environment
from domains.robot.guard import Vector
from domains.robot.policy import Policy
from domains.robot.running import RunConfig, bench_row, episode, summary
from suite.report import Report, write_report
from suite.run import Run

STEPS = 100


class StillPushT:
    """PushT without contact: the agent follows its target as in the task (PD control), the block stays where it is."""

    def reset(self, seed: int = 0) -> tuple[Vector, dict[str, Any]]:
        rng = np.random.default_rng(seed)
        self.agent, self.speed = rng.uniform(50, 450, 2), np.zeros(2)
        self.block = np.array([*rng.uniform(100, 400, 2), rng.uniform(0, 2 * np.pi)])
        return self._observation(), {}

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, Mapping[str, Any]]:
        for _ in range(10):  # 0.1 s in steps of 0.01 s
            self.speed = self.speed + (100 * (np.asarray(action) - self.agent) - 20 * self.speed) * 0.01
            self.agent = self.agent + self.speed * 0.01
        return self._observation(), 0.0, False, False, {}

    def _observation(self) -> Vector:
        return np.concatenate([self.agent, self.block])


def demo_run(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """One episode and a short bench; returns the report."""
    simulated = importlib.util.find_spec("gym_pusht") is not None
    config = RunConfig(max_steps=STEPS)
    with Run(
        output,
        domain="robot",
        config=config,
        inputs=[],
        command=("diffsuite", "demo", "robot"),
        method=config.sampler,
        overwrite=overwrite,
    ) as run:
        environment: Any = make_environment("gym_pusht/PushT-v0") if simulated else StillPushT()
        policy = Policy("pusht", config, action_box(environment) or ([0, 0], [512, 512]))
        run.estimator = "sample"
        run.prior = {"name": policy.card.name, "sha256": policy.file.sha256}
        with run.clock("network"):
            row, results = episode(policy, environment, 100000, STEPS)
        run.nfe = row["nfe"]
        run.metrics = summary([row], [result.latency for result in results])
        run.warn("A simulated scene: no robot data ship with a dependency.")
        if not simulated:
            run.warn(
                "gym-pusht is not installed; the block of this scene does not move (pip install 'diffsuite[sim]')."
            )
        bench = bench_row(policy, 50)
        verdict: Literal["pass", "check"] = "pass" if simulated and not row["sources"]["hold"] else "check"
        facts = {"policy": policy.card.name, "steps": row["steps"], "reward_max": row["reward_max"]}
        facts |= {f"actions: {name}": count for name, count in row["sources"].items()}
        facts |= {f"bench {name}": bench[name] for name in ("nfe", "p50_ms", "p99_ms")}
        facts |= {f"interventions: {name}": count for name, count in row["interventions"].items()}
        report = Report("Robot policy", verdict, ["One episode of the shipped policy."], facts, warnings=run.warnings)
        write_report(report, run.output("report.html"))
    return output / "report.html"
