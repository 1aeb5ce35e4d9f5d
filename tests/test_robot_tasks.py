"""The avoidance task, its expert, training's parts, and the shipped policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from domains.robot.arrays import read_npz, write_npz
from domains.robot.containers import Episode
from domains.robot.policy import Policy
from domains.robot.policyconfig import PolicyConfig
from domains.robot.policyfile import WEIGHTS, load_policy_file
from domains.robot.running import entropy
from domains.robot.settings import SymmetryConfig
from domains.robot.tasks.avoidance import GAPS, ROWS, Avoidance, collides, demonstrations
from domains.robot.training import PolicyTrainer, images
from domains.robot.verbs import self_test_deviation
from suite.errors import InputError
from tests import robot_cases

SHIPPED = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def test_the_expert_takes_every_route_and_touches_nothing(tmp_path: Path) -> None:
    data = demonstrations(150, 0)
    routes = []
    for episode in data.episodes:
        environment = Avoidance()
        environment.reset()
        environment.at = episode.observation[0].astype(float)
        for action in episode.action:
            _, _, done, _, about = environment.step(action)
            if done:
                break
        assert about["is_success"]
        routes.append(list(about["route"]))
    assert len(set(map(tuple, routes))) == 24 and entropy(routes, 24) > 0.9
    write_npz(data, tmp_path / "a.npz")
    again = read_npz(tmp_path / "a.npz")
    assert again.fps == 20 and np.array_equal(again.episodes[7].action, data.episodes[7].action)


def test_an_obstacle_ends_the_episode() -> None:
    environment = Avoidance()
    at, _ = environment.reset(3)
    for _ in range(40):
        at, reward, done, _, about = environment.step(np.array([0.0, 2.0]))
        if done:
            break
    assert done and not about["is_success"] and at[1] < ROWS[0] + 0.1 and 0 < reward < 1
    assert collides(np.array([[0.0, ROWS[0]]])).all() and not collides(np.array([[GAPS[0][0], ROWS[0]]])).any()
    assert environment.render().shape == (300, 420, 3)


def test_entropy_of_routes() -> None:
    assert entropy([[0, 1, 2]] * 5, 24) == 0
    assert entropy([[i] for i in range(24)], 24) == pytest.approx(1)
    assert entropy([[0], [1]], 4) == pytest.approx(0.5)


def test_the_mirror_of_pusht_is_its_own_inverse() -> None:
    """The goal pose (256, 256, pi/4) maps to itself, and mirroring twice gives the episode back."""
    half = np.pi / 2
    rows = [
        [0, -1, 0, 0, 0, 512],
        [-1, 0, 0, 0, 0, 512],
        [0, 0, 0, -1, 0, 512],
        [0, 0, -1, 0, 0, 512],
        [0, 0, 0, 0, -1, half],
    ]
    symmetry = SymmetryConfig(observation=rows, action=[[0, -1, 512], [-1, 0, 512]])
    seen = np.array([[100, 200, 256, 256, np.pi / 4], [10, 20, 300, 40, 1.0]], np.float32)
    episode = Episode(seen, seen[:, :2])
    once = images([episode], symmetry)
    np.testing.assert_allclose(once[0].observation[0, 2:], [256, 256, np.pi / 4], rtol=1e-6)
    np.testing.assert_allclose(once[0].action[0], [312, 412])
    np.testing.assert_allclose(images(once, symmetry)[0].observation, seen, rtol=1e-5)
    with pytest.raises(InputError, match=r"symmetry\.action needs 2 rows of 3"):
        images([episode], SymmetryConfig(observation=rows, action=[[1, 0]]))


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    def trainer(name: str, iterations: int) -> PolicyTrainer:
        config = robot_cases.config(iterations=iterations, mixed_precision=False)
        return PolicyTrainer(
            config, robot_cases.demonstrations(), tmp_path / f"{name}.safetensors", torch.device("cpu")
        )

    whole = trainer("whole", 12)
    for _ in range(12):
        whole.train_step(0.3)
    part = trainer("part", 12)
    for _ in range(5):
        part.train_step(0.3)
    part.save_checkpoint()
    again = trainer("part", 99)
    again.resume()
    for _ in range(7):
        again.train_step(0.3)
    for a, b in zip(whole.average.parameters(), again.average.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    other = PolicyTrainer(
        robot_cases.config(batch=7), robot_cases.demonstrations(), tmp_path / "part.safetensors", torch.device("cpu")
    )
    with pytest.raises(InputError, match="another configuration"):
        other.resume()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_passes_its_self_test(name: str) -> None:
    file = load_policy_file(name)
    assert self_test_deviation(file) < 1e-3
    assert file.samplers() == ("ddpm", "ddim", "dpmpp-2m", "heun", "rti", "warm", "stream", "anchor")


@pytest.mark.skipif("avoidance" not in SHIPPED, reason="no shipped avoidance policy")
def test_the_shipped_policy_passes_the_obstacles_by_many_routes() -> None:
    """Forty robots at once; the shipped policy's figures over more episodes are in docs/robot.md."""
    robots = [Avoidance() for _ in range(40)]
    seen = np.stack([robot.reset(2000 + i)[0] for i, robot in enumerate(robots)])
    box = (Avoidance.action_space.low, Avoidance.action_space.high)
    policy = Policy("avoidance", PolicyConfig(seed=2000), box)
    routes: dict[int, list[int]] = {}
    live = set(range(40))
    for _ in range(150):
        action = policy.act(seen).action
        for i in list(live):
            seen[i], _, done, _, about = robots[i].step(action[i])
            if done:
                live.discard(i)
                routes |= {i: list(about["route"])} if about["is_success"] else {}
    assert len(routes) >= 24 and entropy(list(routes.values()), 24) > 0.5


@pytest.mark.skipif("pusht" not in SHIPPED, reason="no shipped PushT policy")
def test_pusht_moves_the_block_to_its_goal() -> None:
    pytest.importorskip("gym_pusht")
    from domains.robot.environments import action_box, make_environment
    from domains.robot.running import episode

    environment = make_environment("gym_pusht/PushT-v0")
    policy = Policy("pusht", PolicyConfig(execute=4), action_box(environment))
    row, _ = episode(policy, environment, 500, 300)
    assert row["reward_max"] > 0.6
