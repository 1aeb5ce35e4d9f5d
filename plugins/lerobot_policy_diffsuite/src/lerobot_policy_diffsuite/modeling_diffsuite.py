"""The policy type `diffsuite`: LeRobot's calls, answered by `domains.robot.policy`."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor

from domains.robot.policy import Policy
from domains.robot.settings import RobotTrainingConfig
from suite.errors import InputError
from suite.noise import generator
from suite.training import TrainingConfig, draw_times

from .configuration_diffsuite import DiffsuiteConfig


class DiffsuitePolicy(PreTrainedPolicy):
    """A policy file in LeRobot; observations and actions in physical units.

    Raises:
        ValueError: features or device that do not fit the file.
        InputError: the file is unusable, or the settings do not fit it.
    """

    config_class = DiffsuiteConfig
    name = "diffsuite"

    def __init__(self, config: DiffsuiteConfig, dataset_stats: Any = None, **kwargs: Any) -> None:
        super().__init__(config)
        config.validate_features()
        self.policy = Policy(config.policy_file, config.settings())
        self.net = self.policy.file.net.requires_grad_(True)  # the module that is fine-tuned, saved and loaded
        low, high = self.policy.card.sigma_range
        levels = RobotTrainingConfig().noise.model_copy(update={"low": low, "high": high})
        self._schedule = TrainingConfig(noise=levels)
        self._random = generator(config.seed, "fine-tuning")
        self._episode = 0

    def reset(self) -> None:
        """A new episode, with noise of its own."""
        self.policy.reset(self.config.seed + self._episode)
        self._episode += 1

    def get_optim_params(self) -> dict[str, Any]:
        return {"params": self.net.parameters()}

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """The next command `(B, A)`, within the guard's limits."""
        return self.policy.select_action(batch)

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """A new chunk `(B, H, A)`; with what is left of the previous one `(T, A)` or `(B, T, A)` it continues that.

        The first `inference_delay` actions left over are those that are executed in the meantime.
        """
        left = None if prev_chunk_left_over is None else _unpadded(prev_chunk_left_over)
        if left is None or not left.numel():
            return self.policy.predict_action_chunk(batch)
        return self.policy.predict_action_chunk(batch, min(inference_delay or 0, left.shape[-2]), left)

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Loss on observations `(B, T, O)` and actions `(B, H, A)`.

        As in `robot train`, an episode's last action is held to the end of a chunk that reaches beyond it, and counts.

        Args:
            reduction: `mean`, or `none` for one value per item.

        Raises:
            InputError: no observation, or one or actions of other sizes than the policy's.
        """
        card, normalizer = self.policy.card, self.policy.normalizer
        seen, chunk = self.policy.joined(batch), batch[ACTION].float()
        wanted = [(card.observation_steps, len(card.observation)), (card.horizon, len(card.action))]
        found = [() if seen is None else seen.shape[1:], tuple(chunk.shape[1:])]
        if seen is None or found != wanted:
            raise InputError(f"observations and actions of an item have the shapes {found}; {wanted} are needed")
        condition = normalizer.observation(torch.from_numpy(seen).float()).flatten(1)
        x0 = normalizer.action(chunk).transpose(1, 2)
        t = draw_times(self._schedule, self.net.process, len(x0), self._random)
        loss = self.net.loss(x0, condition, t, torch.randn(x0.shape, generator=self._random))
        mean = float(loss.detach().mean())
        return (loss if reduction == "none" else loss.mean()), {"loss": mean}


def _unpadded(left: Tensor) -> Tensor:
    """Without the rows of zeros that LeRobot's real-time chunking appends to a short rest: 0 is a physical position here."""
    used = left.ne(0).any(-1)
    while used.ndim > 1:
        used = used.any(0)
    last = int(used.nonzero().max()) + 1 if bool(used.any()) else 0
    return left[..., :last, :]
