"""PushT demonstrations as a camera sees them: pictures of gym-pusht in place of the block's pose.

    python benchmarks/_robot_pictures.py pusht_lowdim_train.npz -o pictures.npz [--episodes 80] [--size 48] [--blank]

The npz holds `state` (agent x, y; pixels), `camera` (T, size, size, 3) uint8, `action` and `episode_ends`. With --blank every
picture is grey: what a policy of the same size achieves that cannot see the block.

    diffsuite robot train --data pictures.npz -o policy.safetensors --config configs/robot/pusht_camera.yaml
    diffsuite robot evaluate policy.safetensors --data pictures.npz --sampler ddim
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from domains.robot.environments import make_environment


def picture(environment: Any, state: NDArray[np.floating], size: int) -> NDArray[np.uint8]:
    """The scene in this state (agent x, y; block x, y, angle)."""
    environment.agent.position = tuple(float(v) for v in state[:2])
    environment.block.angle = float(state[4])
    environment.block.position = tuple(float(v) for v in state[2:4])
    environment.agent.velocity, environment.block.velocity, environment.block.angular_velocity = (0, 0), (0, 0), 0
    environment.space.step(1e-6)
    image = Image.fromarray(environment._render()).resize((size, size), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=80)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--blank", action="store_true")
    given = parser.parse_args()
    with np.load(given.data, allow_pickle=False) as file:
        ends = file["episode_ends"][: given.episodes]
        state, action = file["state"][: ends[-1]], file["action"][: ends[-1]]
    shape = (len(state), given.size, given.size, 3)
    if given.blank:
        pictures = np.full(shape, 128, dtype=np.uint8)
    else:
        environment = make_environment("gym_pusht/PushT-v0", pictures=True).unwrapped
        environment.reset(seed=0)
        pictures = np.stack([picture(environment, row, given.size) for row in state])
    np.savez_compressed(given.output, state=state[:, :2], camera=pictures, action=action, episode_ends=ends, fps=10.0)


if __name__ == "__main__":
    main()
