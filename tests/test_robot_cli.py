"""The verbs, from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import main
from domains.robot.samplers import SAMPLERS
from domains.robot.settings import RobotTrainingConfig
from suite.config import load_config
from tests.conftest import ROOT
from tests.robot_cases import config, policy_file, write_npz


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("robot") / "walk.safetensors"
    policy_file().save(path)
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main(["robot", *words]) == code
    out = capsys.readouterr()
    return json.loads(out.out) if code != 2 else out.err


class Walk:
    """The task of tests/robot_cases.py as an environment."""

    def __init__(self) -> None:
        self.action_space = type("Box", (), {"low": np.full(3, -10.0), "high": np.full(3, 10.0)})()

    def reset(self, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        rng = np.random.default_rng(seed)
        self.goal, self.at, self.seed = rng.uniform(-1, 1, 2), rng.uniform(-1, 1, 2), seed
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at = np.asarray(action[:2], dtype=float)
        distance = float(np.linalg.norm(self.goal - self.at))
        return self.observe(), -distance, False, False, {"is_success": distance < 0.5}

    def observe(self) -> Any:
        return np.array([*self.at, *self.goal, np.arctan2(*self.goal)])


def test_train_info_evaluate_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_npz(tmp_path / "walk.npz"), str(tmp_path / "p.safetensors")
    settings = tmp_path / "c.yaml"
    settings.write_text(json.dumps(config().model_dump(exclude={"noise", "iterations"})))
    record = said(
        capsys, "train", "--data", str(data), "-o", out, "--config", str(settings), "--iterations", "20", "--json", "-"
    )
    assert record["card"]["training"]["iterations"] == 20 and record["card"]["validation_episodes"] == [2, 5]
    assert said(capsys, "info", out, "--json")["horizon"] == 8
    assert said(capsys, "info", str(data), "--json")["frames"] == 180
    found = said(capsys, "evaluate", out, "--data", str(data), "--sampler", "ddim", "--json")
    assert found["settings"]["episodes"] == [2, 5] and found["metrics"]["action_rmse"] > 0
    assert said(capsys, "check", out, "--json")["pass"] is True
    assert "overwrite" in said(capsys, "train", "--data", str(data), "-o", out, code=2)


def test_rollout(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("rollout", policy, "--env", f"{__name__}:Walk", "--episodes", "2", "--seed", "5", "--set", "max_steps=12")
    first, second = said(capsys, *words, "--json"), said(capsys, *words, "--json")
    assert [row["seed"] for row in first["episodes"]] == [5, 6] and first["metrics"]["nfe_per_action"] == (
        10 + 11 * 3
    ) / 12
    assert first["episodes"][0]["reward_max"] == second["episodes"][0]["reward_max"]
    assert set(first["episodes"][0]) >= {"seed", "reward_max", "success", "steps", "interventions"}


def test_bench(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = said(capsys, "bench", policy, "--calls", "5", "--steps", "4", "--deadline-ms", "1e6", "--json")["rows"]
    assert [row["sampler"] for row in rows] == list(SAMPLERS)
    for row in rows:
        assert len(row["latency_ms"]) == row["calls"] == 5 == sum(row["sources"].values())
        assert row["misses"] == 0 and row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] and row["nfe"] <= 4


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (("rollout", "POLICY", "--env", "nowhere_at_all:Env"), "nowhere_at_all"),
        (("rollout", "POLICY", "--env", f"{__name__}:Walk", "--set", "guard.velocity=-1"), "guard.velocity"),
        (("rollout", "POLICY", "--env", f"{__name__}:Walk", "--set", "guard.velocty=1"), "guard.velocity"),
        (("bench", "POLICY", "--sampler", "euler"), "euler"),
        (("bench", "no-such-policy"), "no-such-policy"),
        (("evaluate", "POLICY", "--data", "absent.npz"), "absent.npz"),
        (("check", "no-such-policy"), "no-such-policy"),
    ],
)
def test_faults_are_told_in_a_sentence(
    policy: str, words: tuple[str, ...], needle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = said(capsys, *(policy if word == "POLICY" else word for word in words), code=2)
    assert needle in error and "Traceback" not in error


def test_damage_is_exit_code_2(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(Path(policy).read_bytes())
    content[-5] ^= 0xFF
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    assert "checksum" in said(capsys, "check", str(damaged), code=2)


def test_the_written_out_defaults_are_the_defaults() -> None:
    found = load_config(RobotTrainingConfig, ROOT / "configs" / "robot" / "train.yaml")
    assert found == RobotTrainingConfig()
