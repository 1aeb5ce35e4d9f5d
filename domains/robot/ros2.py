"""A ROS 2 node around a policy: `python -m domains.robot.ros2 POLICY`, where rclpy and std_msgs are there (a ROS 2 installation).

Subscribes `observation` and publishes `action`, both `std_msgs/Float64MultiArray`, at the policy's own rate. An observation counts
from its arrival; a stale or missing one makes the policy use its queue and then stop, and so it goes on publishing.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from domains.robot.policy import Policy
from domains.robot.policyconfig import PolicyConfig
from suite.errors import InputError

DEADLINE_SHARE = 0.5  # of a control period


def ros() -> tuple[Any, Any]:
    """The modules rclpy and std_msgs.msg.

    Raises:
        InputError: no ROS 2 here.
    """
    try:
        import rclpy
        from std_msgs import msg
    except ImportError as error:
        raise InputError(f"the ROS 2 node needs rclpy and std_msgs ({error}); source a ROS 2 installation") from error
    return rclpy, msg


class Bridge:
    """What the node does between its topics.

    Args:
        node: an `rclpy.node.Node`.
        message: the class `Float64MultiArray`.
    """

    def __init__(self, node: Any, message: Any, policy: Policy) -> None:
        self.node, self.message, self.policy = node, message, policy
        self.observation: Any = None
        self.arrived: float | None = None
        self.publisher = node.create_publisher(message, "action", 1)
        node.create_subscription(message, "observation", self.take, 1)
        node.create_timer(policy.dt, self.turn)

    def take(self, message: Any) -> None:
        """An observation has arrived."""
        self.observation, self.arrived = np.array(message.data, dtype=np.float64), time.monotonic()

    def turn(self) -> None:
        """One control period: act, publish, tell of what is unusual."""
        try:
            result = self.policy.act(self.observation, DEADLINE_SHARE * self.policy.dt, self.arrived)
        except InputError as error:
            self.node.get_logger().error(str(error))
            result = self.policy.act(None)
        self.observation = self.arrived = None
        self.publisher.publish(self.message(data=[float(value) for value in result.action]))
        if result.source == "hold":
            self.node.get_logger().warning(f"holding: {result.interventions}")


def main(name: str) -> None:
    """Run the node until it is shut down."""
    rclpy, msg = ros()
    rclpy.init()
    node = rclpy.create_node("diffsuite_policy")
    Bridge(node, msg.Float64MultiArray, Policy(name, PolicyConfig()))
    try:
        rclpy.spin(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) == 2 else "")
    except InputError as fault:
        sys.exit(f"Error: {fault}")
