"""The guard, against the differences of the commands it lets through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.robot.guard import Guard, Limits, brake_step
from suite.errors import InputError


def limits(velocity: float, acceleration: float, jerk: float, dims: int = 2) -> Limits:
    one = np.ones(dims)
    return Limits(-one, one, velocity * one, acceleration * one, jerk * one)


@given(
    st.integers(0, 10**6),
    st.floats(0.05, 30),
    st.floats(0.05, 300),
    st.floats(0.5, 3000),
    st.sampled_from([0.02, 0.1]),
)
def test_no_request_leads_out_of_the_limits(seed: int, v: float, a: float, j: float, dt: float) -> None:
    guard = Guard(limits(v, a, j), dt)
    rng = np.random.default_rng(seed)
    guard.start(rng.uniform(-1, 1, (1, 2)))
    assert guard.position is not None
    commands = [guard.position] * 3
    for _ in range(60):
        kind = rng.integers(3)
        request = rng.choice([-1e9, 1e9, 0.3], (1, 2)) if kind == 0 else rng.uniform(-2, 2, (1, 2))
        commands.append(guard.brake() if kind == 2 else request)
        commands[-1] = guard(commands[-1])[0]
    path = np.concatenate(commands)
    for order, most in enumerate((v, a, j), 1):
        assert np.abs(np.diff(path, order, axis=0)).max() <= most * dt**order * (1 + 1e-6) + 1e-12
    assert np.abs(path).max() <= 1


def test_a_request_inside_the_limits_passes() -> None:
    guard = Guard(limits(10, 1000, 1e5), 0.1)
    guard.start(np.zeros((1, 2)))
    wanted = np.array([[0.2, -0.1]])
    command, notes = guard(wanted)
    np.testing.assert_array_equal(command, wanted)
    assert not notes[0]


def test_the_goal_is_reached_and_the_limits_are_used() -> None:
    guard = Guard(limits(1.0, 4.0, 40.0), 0.05)
    guard.start(np.full((1, 2), -0.9))
    path = np.concatenate([guard(np.full((1, 2), 0.9))[0] for _ in range(120)])
    assert path[-1] == pytest.approx(0.9, abs=1e-3)
    assert np.abs(np.diff(path, axis=0)).max() > 0.95 * 0.05  # it travels at full speed in between


def test_each_limit_is_named() -> None:
    guard = Guard(limits(1.0, 1e3, 1e6), 0.1)
    guard.start(np.zeros((2, 2)))
    _, notes = guard(np.array([[5.0, 0.0], [0.01, 0.0]]))
    assert notes[0]["position"] and notes[0]["velocity"] and not notes[1]


@given(st.floats(-5, 5), st.floats(-1, 1), st.floats(0.01, 1))
def test_the_brake_stops(velocity: float, acceleration: float, jerk: float) -> None:
    v, c = np.array([velocity]), np.array([acceleration])
    for _ in range(300):
        before = c
        c = brake_step(v, c, np.ones(1), np.array([jerk]))
        assert abs(c[0] - before[0]) <= jerk * (1 + 1e-9) and abs(c[0]) <= 1 + 1e-9
        v = v + c
    assert abs(v[0]) < 1e-6 and abs(c[0]) < 1e-6


def test_limits_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"guard\.velocity"):
        limits(0, 1, 1)
