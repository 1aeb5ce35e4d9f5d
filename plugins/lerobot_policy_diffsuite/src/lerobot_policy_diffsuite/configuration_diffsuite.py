"""Settings of the policy type `diffsuite`; sizes come from the card of the policy file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lerobot.configs import PreTrainedConfig
from lerobot.optim import AdamWConfig

from domains.robot.policyconfig import PolicyConfig
from domains.robot.policyfile import PolicyCard, load_policy_file

STATES = ("observation.state", "observation.environment_state")


@PreTrainedConfig.register_subclass("diffsuite")
@dataclass
class DiffsuiteConfig(PreTrainedConfig):
    """Which policy runs, and how.

    Attributes:
        policy_file: a file of `diffsuite robot train`, or the name of a shipped policy.
        sampler, steps, execute, deadline_ms, seed: see `domains.robot.policyconfig.PolicyConfig`.
        optimizer_lr, optimizer_weight_decay: of fine-tuning.
    """

    device: str | None = "cpu"
    policy_file: str = ""
    sampler: str = "warm"
    steps: int | None = None
    execute: int | None = None
    deadline_ms: float | None = None
    seed: int = 0
    optimizer_lr: float = 1e-4
    optimizer_weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy_file:
            self.n_obs_steps = self.card.observation_steps

    @cached_property
    def card(self) -> PolicyCard:
        """What the policy is."""
        return load_policy_file(self.policy_file).card

    def settings(self) -> PolicyConfig:
        """How diffsuite is to run it."""
        return PolicyConfig(
            sampler=self.sampler,
            steps=self.steps,
            execute=self.execute,
            deadline_ms=self.deadline_ms,
            seed=self.seed,
        )

    def validate_features(self) -> None:
        """Refuse features and a device that do not fit the policy file.

        Raises:
            ValueError: says which.
        """
        if not self.policy_file:
            raise ValueError("policy_file is empty; name a file of `diffsuite robot train` or a shipped policy")
        if self.device != "cpu":
            raise ValueError(
                f"the device is {self.device!r}; policies of diffsuite run on the CPU, so set device to cpu"
            )
        if self.card.vision is not None or self.card.commands:
            raise ValueError(
                f"the policy {self.card.name} sees {'cameras' if self.card.vision is not None else 'its own last command'}; "
                "this plug-in serves policies that see numbers of the robot only: use diffsuite robot serve"
            )
        features = self.input_features or {}
        state = sum(features[name].shape[0] for name in STATES if name in features)
        if state != len(self.card.observation):
            raise ValueError(
                f"{' and '.join(STATES)} have {state} numbers, and the policy {self.card.name} takes "
                f"{len(self.card.observation)}: {', '.join(self.card.observation)}"
            )
        action = self.action_feature
        if action is None or action.shape[0] != len(self.card.action):
            raise ValueError(
                f"the feature action is {None if action is None else tuple(action.shape)}, and the policy "
                f"{self.card.name} gives {len(self.card.action)} numbers: {', '.join(self.card.action)}"
            )

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay)

    def get_scheduler_preset(self) -> None:
        return None

    @property
    def observation_delta_indices(self) -> list[int]:
        """The observations a policy sees, the present one last."""
        return list(range(1 - self.card.observation_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """The actions of a chunk, from now on."""
        return list(range(self.card.horizon))

    @property
    def reward_delta_indices(self) -> None:
        return None
