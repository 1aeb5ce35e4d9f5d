"""Offline action error: what the policy would have commanded on seeing the observations of a demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from domains.robot.containers import Demonstrations, Episode
from domains.robot.policyconfig import PolicyConfig
from domains.robot.policyfile import PolicyFile
from domains.robot.windows import windows
from suite.errors import InputError
from suite.noise import Noise


def check_dimensions(policy: PolicyFile, data: Demonstrations) -> None:
    """Refuse data that are not like those the policy was trained on.

    Raises:
        InputError: another number of observation or action dimensions.
    """
    card = policy.card
    for what, own, other in (
        ("observation", len(card.observation), data.observation_dim),
        ("action", len(card.action), data.action_dim),
    ):
        if own != other:
            raise InputError(f"{data.name}: {other} {what} dimensions, and the policy {card.name} has {own}")


def offline_errors(
    policy: PolicyFile, episodes: Sequence[Episode], config: PolicyConfig, others: Sequence[Episode] = ()
) -> dict[str, Any]:
    """Errors of sampled chunks against the demonstrated ones, each sampled without a previous chunk.

    `action_rmse` over the actions that are executed, `first_rmse` over the first one, in action units;
    `action_nrmse` in units of the demonstrations' standard deviation per dimension. To compare with, over the executed
    actions: `hold_rmse`, from repeating the demonstrated action of the step before, and `mean_rmse`, from the mean of all
    actions of `others`; of a policy with a linear regression, `linear_rmse`, from that alone.

    Args:
        others: the episodes the policy was trained on, where they are at hand.
    """
    card, stats = policy.card, policy.normalizer
    sampler = policy.sampler(config.sampler, config.steps, config.warm_ratio)
    examples = windows(episodes, stats, card.observation_steps, card.horizon)
    parts, batch = [], 512
    for i in range(0, len(examples), batch):
        pictures = None if examples.pictures is None else examples.pictures[i : i + batch]
        condition = policy.net.condition(examples.condition[i : i + batch], pictures)
        noise = Noise.of(config.seed, [str(i + k) for k in range(len(condition))])
        drawn = sampler.draw(condition, noise)
        if drawn.chunk is None:
            raise ValueError("a sampler without a deadline always gives a chunk")
        parts.append(drawn.chunk)
    execute = config.execute or card.execute
    got, wanted = (
        stats.physical_action(v.transpose(1, 2)).double().numpy() for v in (torch.cat(parts), examples.chunk)
    )
    before = np.concatenate([np.concatenate([e.action[:1], e.action[:-1]]) for e in episodes])[:, None]
    actions = np.concatenate([e.action for e in episodes]).astype(np.float64)
    spread = np.where(actions.std(0) > 0, actions.std(0), 1.0)
    usual = np.concatenate([e.action for e in others]).astype(np.float64).mean(0) if others else 0.0
    origin = policy.net.origin
    line = None
    if origin is not None:
        line = stats.physical_action(origin(examples.condition).transpose(1, 2)).double().numpy()
    error = (got - wanted)[:, :execute]
    return {
        "action_rmse": _rms(error),
        "action_mae": float(np.abs(error).mean()),
        "action_nrmse": _rms(error / spread),
        "first_rmse": _rms(error[:, 0]),
        "hold_rmse": _rms(before - wanted[:, :execute]),
        **({"mean_rmse": _rms(usual - wanted[:, :execute])} if others else {}),
        **({} if line is None else {"linear_rmse": _rms((line - wanted)[:, :execute])}),
        "per_dimension": dict(zip(card.action, np.sqrt((error**2).mean((0, 1))).tolist(), strict=True)),
        "examples": len(examples),
    }


def _rms(error: Any) -> float:
    return float(np.sqrt(np.mean(np.square(error))))
