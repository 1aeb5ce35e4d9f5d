"""The LeRobot plug-in, with a stand-in for the base classes and processors of LeRobot that it uses."""

from __future__ import annotations

import abc
import importlib
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from domains.robot.policy import Policy
from domains.robot.policyconfig import PolicyConfig
from suite.errors import InputError
from tests.conftest import ROOT
from tests.robot_cases import policy_file

PLUGIN = ROOT / "plugins" / "lerobot_policy_diffsuite"
NAME = "lerobot_policy_diffsuite"

# --- the stand-in -----------------------------------------------------------------------------------------------------


@dataclass
class PreTrainedConfig(abc.ABC):
    """Registry, features and abstract members of LeRobot's class."""

    choices: ClassVar[dict[str, type]] = {}
    n_obs_steps: int = 1
    input_features: dict[str, Any] = field(default_factory=dict)
    output_features: dict[str, Any] = field(default_factory=dict)
    device: str | None = None

    @classmethod
    def register_subclass(cls, name: str) -> Any:
        return lambda sub: cls.choices.setdefault(name, sub)

    def __post_init__(self) -> None:
        self.device = self.device or "cuda"

    @property
    def action_feature(self) -> Any:
        return self.output_features.get("action")

    @property
    @abc.abstractmethod
    def observation_delta_indices(self) -> Any: ...

    @property
    @abc.abstractmethod
    def action_delta_indices(self) -> Any: ...

    @property
    @abc.abstractmethod
    def reward_delta_indices(self) -> Any: ...

    @abc.abstractmethod
    def get_optimizer_preset(self) -> Any: ...

    @abc.abstractmethod
    def get_scheduler_preset(self) -> Any: ...

    @abc.abstractmethod
    def validate_features(self) -> None: ...


class PreTrainedPolicy(nn.Module, abc.ABC):
    """What LeRobot's class demands of its subclasses."""

    def __init__(self, config: Any, *inputs: Any, **kwargs: Any) -> None:
        super().__init__()
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        assert cls.config_class and cls.name  # type: ignore[attr-defined]

    @abc.abstractmethod
    def get_optim_params(self) -> Any: ...

    @abc.abstractmethod
    def reset(self) -> None: ...

    @abc.abstractmethod
    def forward(self, batch: Any) -> Any: ...

    @abc.abstractmethod
    def predict_action_chunk(self, batch: Any) -> Any: ...

    @abc.abstractmethod
    def select_action(self, batch: Any) -> Any: ...


class Pipeline(SimpleNamespace):
    def __class_getitem__(cls, _item: Any) -> Any:
        return cls


def step(name: str) -> Any:
    return lambda **options: (name, options)


def stand_in() -> dict[str, ModuleType]:
    contents: dict[str, dict[str, Any]] = {
        "lerobot": {},
        "lerobot.configs": {"PreTrainedConfig": PreTrainedConfig},
        "lerobot.optim": {"AdamWConfig": lambda **options: SimpleNamespace(**options)},
        "lerobot.policies": {"PreTrainedPolicy": PreTrainedPolicy},
        "lerobot.processor": {
            "PolicyAction": Tensor,
            "PolicyProcessorPipeline": Pipeline,
            "policy_action_to_transition": "to",
            "transition_to_policy_action": "from",
            **{f"{name}ProcessorStep": step(name) for name in ("AddBatchDimension", "Device", "RenameObservations")},
        },
        "lerobot.utils": {},
        "lerobot.utils.constants": {
            "ACTION": "action",
            "POLICY_PREPROCESSOR_DEFAULT_NAME": "policy_preprocessor",
            "POLICY_POSTPROCESSOR_DEFAULT_NAME": "policy_postprocessor",
        },
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
    return modules


@pytest.fixture(scope="module")
def plugin() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_in().items():
            patch.setitem(sys.modules, name, module)
        patch.syspath_prepend(str(PLUGIN / "src"))
        patch.setattr(PreTrainedConfig, "choices", {})
        yield importlib.import_module(NAME)
        for name in [name for name in sys.modules if name.startswith(NAME)]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policy") / "walk.safetensors"
    policy_file().save(out)
    return out


def feature(size: int) -> Any:
    return SimpleNamespace(shape=(size,))


def config(plugin: ModuleType, path: Path | str, **changes: Any) -> Any:
    features = {"observation.state": feature(2), "observation.environment_state": feature(3)}
    given = {"input_features": features, "output_features": {"action": feature(3)}, "policy_file": str(path)}
    return plugin.DiffsuiteConfig(**{**given, **changes})


def batch(k: int = 0) -> dict[str, Tensor]:
    state = torch.tensor([[0.1 + 0.01 * k, -0.2], [-0.3, 0.4]])
    return {"observation.state": state, "observation.environment_state": torch.tensor([[0.5, 0.4, 0.9]] * 2)}


def joined(k: int) -> np.ndarray[Any, Any]:
    return torch.cat(list(batch(k).values()), 1).double().numpy()


# --- the contract -----------------------------------------------------------------------------------------------------


def test_the_distribution_is_one_that_lerobot_finds() -> None:
    about = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    assert about["name"].startswith("lerobot_policy_") and about["requires-python"] == ">=3.12"
    main = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [main["project"]["dependencies"], *main["project"]["optional-dependencies"].values()]
    assert not any("lerobot" in name for group in groups for name in group)


def test_everything_is_found_by_its_name(plugin: ModuleType, path: Path) -> None:
    """As LeRobot's factory looks for policy and processors: from the module and name of the registered config class."""
    found = PreTrainedConfig.choices["diffsuite"]
    module = found.__module__
    policy = getattr(
        importlib.import_module(module.replace("configuration_", "modeling_")),
        found.__name__.removesuffix("Config") + "Policy",
    )
    assert policy.name == "diffsuite" and policy.config_class is found
    make = importlib.import_module(module.replace("configuration_", "processor_")).make_diffsuite_pre_post_processors
    before, after = make(config(plugin, path), dataset_stats=None)
    assert before.name == "policy_preprocessor" and after.name == "policy_postprocessor"
    assert not any("ormaliz" in name for name, _ in [*before.steps, *after.steps])


def test_sizes_come_from_the_card(plugin: ModuleType, path: Path) -> None:
    found = config(plugin, path)
    assert found.observation_delta_indices == [-1, 0] and found.action_delta_indices == list(range(8))
    assert found.n_obs_steps == 2 and found.device == "cpu" and found.get_optimizer_preset().lr == 1e-4
    assert found.get_scheduler_preset() is None and found.reward_delta_indices is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy_file": ""}, "policy_file"),
        ({"device": "cuda"}, "device"),
        ({"input_features": {"observation.state": feature(4)}}, "takes 5"),
        ({"output_features": {"action": feature(2)}}, "gives 3"),
        ({"output_features": {}}, "gives 3"),
    ],
)
def test_what_does_not_fit_is_refused(plugin: ModuleType, path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plugin.DiffsuitePolicy(config(plugin, path, **changes))


def test_a_policy_that_sees_more_than_numbers_of_the_robot_is_refused(plugin: ModuleType, tmp_path: Path) -> None:
    data = {"angles": [4], "position": [0, 1, 0], "held_out": 3, "commands": True}
    made = policy_file(data=data, iterations=5)
    made.save(tmp_path / "commands.safetensors")
    with pytest.raises(ValueError, match="its own last command"):
        plugin.DiffsuitePolicy(config(plugin, tmp_path / "commands.safetensors"))


def test_settings_are_those_of_the_suite(plugin: ModuleType, path: Path) -> None:
    with pytest.raises(InputError, match="euler"):
        plugin.DiffsuitePolicy(config(plugin, path, sampler="euler"))
    with pytest.raises(InputError, match="no policy file"):
        config(plugin, "absent")


def test_actions_are_those_of_the_policy(plugin: ModuleType, path: Path) -> None:
    served = plugin.DiffsuitePolicy(config(plugin, path, sampler="ddim", steps=4, seed=3), dataset_stats={})
    own = Policy(str(path), PolicyConfig(sampler="ddim", steps=4, seed=3))
    for episode in range(2):
        served.reset()
        own.reset(3 + episode)
        for k in range(5):
            action = served.select_action(batch(k))
            assert action.shape == (2, 3) and action.dtype == torch.float32
            np.testing.assert_allclose(action, own.act(joined(k)).action, atol=1e-6)


def test_chunks_continue_the_previous_one(plugin: ModuleType, path: Path) -> None:
    served = plugin.DiffsuitePolicy(config(plugin, path))
    first = served.predict_action_chunk(batch(0), inference_delay=0, prev_chunk_left_over=None)
    assert first.shape == (2, 8, 3) and bool(first.isfinite().all())
    left = first[:, 2:] + torch.tensor([0.1, -0.1, 0.0])  # not what the policy would do by itself
    served.reset()
    free = served.predict_action_chunk(batch(0))
    served.reset()
    bound = served.predict_action_chunk(batch(0), inference_delay=4, prev_chunk_left_over=left)
    assert float((bound - left[:, :1])[:, 0, :2].abs().max()) < 0.05
    assert float((bound[:, :4] - left[:, :4]).abs().mean()) < 0.5 * float((free[:, :4] - left[:, :4]).abs().mean())


def test_padding_of_the_rest_is_no_position(plugin: ModuleType, path: Path) -> None:
    """LeRobot appends rows of zeros to a short rest, and its delay may be longer than the rest."""
    served = plugin.DiffsuitePolicy(config(plugin, path))
    left = served.predict_action_chunk(batch(0))[0, 5:]
    seen = {name: value[:1] for name, value in batch(0).items()}
    answers = []
    for rest in (left, torch.cat([left, torch.zeros(4, 3)])):
        served._episode = 0
        served.reset()
        answers.append(served.predict_action_chunk(seen, inference_delay=6, prev_chunk_left_over=rest))
    assert answers[0].shape == (1, 8, 3)
    torch.testing.assert_close(answers[0], answers[1])
    served.reset()
    assert served.predict_action_chunk(seen, 2, torch.zeros(4, 3)).shape == (1, 8, 3)


def test_it_is_fine_tuned_saved_and_loaded(plugin: ModuleType, path: Path) -> None:
    served = plugin.DiffsuitePolicy(config(plugin, path, sampler="ddim"))
    optimizer = torch.optim.AdamW(**served.get_optim_params(), lr=1e-2)
    rng = torch.Generator().manual_seed(0)
    state = torch.rand(64, 2, 2, generator=rng)
    examples = {
        "observation.state": state,
        "observation.environment_state": torch.rand(64, 2, 3, generator=rng),
        "action": torch.cat([state[:, -1:].expand(-1, 8, -1), torch.full((64, 8, 1), 7.0)], -1),
    }
    losses = []
    served.train()
    for _ in range(80):
        loss, about = served.forward(examples)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(about["loss"])
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    assert served.forward(examples, reduction="none")[0].shape == (64,)
    again = plugin.DiffsuitePolicy(config(plugin, path, sampler="ddim"))
    for policy in (served, again):
        policy.eval().reset()
    before = again.select_action(batch())
    again.load_state_dict(served.state_dict())
    again._episode = 0
    again.reset()
    tuned = served.select_action(batch())
    assert float((before - tuned).abs().max()) > 1e-4
    torch.testing.assert_close(again.select_action(batch()), tuned)


def test_wrong_training_shapes_are_refused(plugin: ModuleType, path: Path) -> None:
    served = plugin.DiffsuitePolicy(config(plugin, path))
    with pytest.raises(InputError, match="shapes"):
        served.forward({**batch(), "action": torch.zeros(2, 8, 3)})  # one observation instead of two
