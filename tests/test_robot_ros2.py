"""The ROS 2 node, with a stand-in for rclpy's node."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from domains.robot.policy import Policy
from domains.robot.ros2 import Bridge, ros
from suite.errors import InputError
from tests.robot_cases import policy_file


class Node:
    """The calls of `rclpy.node.Node` that the bridge makes."""

    def __init__(self) -> None:
        self.sent: list[list[float]] = []
        self.said: list[str] = []

    def create_publisher(self, _kind: Any, topic: str, _depth: int) -> Any:
        assert topic == "action"
        return SimpleNamespace(publish=lambda message: self.sent.append(message.data))

    def create_subscription(self, _kind: Any, topic: str, callback: Any, _depth: int) -> None:
        assert topic == "observation"
        self.arrive = callback

    def create_timer(self, period: float, callback: Any) -> None:
        self.period, self.tick = period, callback

    def get_logger(self) -> Any:
        return SimpleNamespace(warning=self.said.append, error=self.said.append)


def message(data: Any) -> Any:
    return SimpleNamespace(data=list(data))


def test_the_node_always_publishes_a_finite_command() -> None:
    node = Node()
    policy = Policy(policy_file())
    Bridge(node, message, policy)
    assert node.period == pytest.approx(0.1)
    node.arrive(message([0.1, -0.2, 0.5, 0.4, 0.9]))
    node.tick()
    assert policy.counters["missing"] == 0
    node.arrive(message([1.0]))  # of the wrong length: told, and answered from the queue
    node.tick()
    assert "5 numbers" in node.said[-1]
    for _ in range(12):
        node.tick()
    assert len(node.sent) == 14 and np.isfinite(node.sent).all() and "holding" in node.said[-1]


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is not None, reason="ROS 2 is here")
def test_without_ros_it_says_so() -> None:
    with pytest.raises(InputError, match="rclpy"):
        ros()
