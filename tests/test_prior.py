"""Prior files and the denoisers made of them: what does not fit is refused, every process gets the same answer."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from suite.errors import InputError
from suite.network import Preconditioned, UNet
from suite.prior import Card, Prior, PriorDenoiser, describe, load_prior, read_card
from suite.process import process


def make(channels: int = 1, condition: int = 0, **card: Any) -> Prior:
    torch.manual_seed(0)
    net = UNet(channels + condition, channels, [8, 16], blocks=1, features=16)
    for name, value in net.named_parameters():
        if "modulation" in name:
            nn.init.normal_(value, std=0.5)
    whole = {
        "name": "test", "domain": "ct", "description": "", "unit": "HU", "scale": 1000.0, "offset": -200.0,
        "value_range": (-1024.0, 3071.0), "channels": channels, "condition_channels": condition,
        "network": net.settings, "process": "edm", "sigma_data": 0.5, "sigma_range": (1e-3, 50.0), "data": ["a"],
        "validation_data": ["b"], "licence": "CC0", "training": {}, "validation": {},
    }  # fmt: skip
    return Prior(Preconditioned(net, 0.5, (1e-3, 50.0)), Card(**whole | card))


def signal(batch: int = 3, channels: int = 1, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def time(value: float, batch: int = 1) -> Tensor:
    return torch.full((batch, 1, 1, 1), value, dtype=torch.float64)


def saved(path: Path, **card: Any) -> Path:
    make(**card).save(path / "prior.safetensors")
    return path / "prior.safetensors"


def rewritten(file: Path, tensors: dict[str, Tensor] | None = None, card: dict[str, Any] | str | None = None) -> Path:
    """The same file with some tensors or card fields replaced."""
    with safe_open(file, "pt") as f:
        old, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118
    if isinstance(card, dict):
        card = json.dumps(json.loads(metadata["card"]) | card)
    save_file(old | (tensors or {}), file, metadata={"card": card or metadata["card"]})
    return file


# --- files -----------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_prior_is_the_same(tmp_path: Path) -> None:
    prior, file = make(), tmp_path / "prior.safetensors"
    prior.save(file, half=False)
    again = load_prior(file, unit="HU", channels=1)
    assert again.card == prior.card
    assert again.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["prior.safetensors"]
    x, t = signal(), time(0.4)
    exact = prior.denoiser(precision="float32")(x, t)
    assert torch.allclose(again.denoiser(precision="float32")(x, t), exact, atol=1e-6)
    whole = file.stat().st_size
    prior.save(file)
    assert file.stat().st_size < 0.7 * whole
    assert torch.allclose(load_prior(file).denoiser(precision="float32")(x, t), exact, atol=5e-3)
    assert describe(file)["unit"] == "HU"


def test_weights_beyond_half_precision_are_kept_whole(tmp_path: Path) -> None:
    prior = make()
    prior.net.network.tail.bias.fill_(1e6)
    prior.save(tmp_path / "large.safetensors")
    assert float(load_prior(tmp_path / "large.safetensors").net.network.tail.bias) == 1e6


def test_values_pass_to_the_network_and_back() -> None:
    prior = make()
    hu = torch.tensor([-1200.0, -200.0, 800.0])
    assert prior.to_network(hu).tolist() == [-1.0, 0.0, 1.0]
    assert torch.equal(prior.from_network(prior.to_network(hu)), hu)


def test_files_that_are_no_prior_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no prior file"):
        load_prior(tmp_path / "none.safetensors")
    file = saved(tmp_path)
    whole = file.read_bytes()
    pickled = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(3)}, pickled)
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:7], b"", pickle.dumps([1]), pickled.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="not a readable safetensors file"):
            load_prior(file)
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(InputError, match="carries no card"):
        load_prior(file)


@pytest.mark.parametrize(
    "message,card",
    [
        ("card field unit", {"unit": None}),
        ("card field scale", {"scale": 0.0}),
        ("card field colour", {"colour": "red"}),
        ("sigma_range must be", {"sigma_range": [1.0, 0.1]}),
        ("value_range must be", {"value_range": [1.0, 1.0]}),
        ("does not describe a prior", {"network": {}}),
        ("does not describe a prior", {"network": {"in_channels": 1, "out_channels": 1, "depth": 9}}),
        ("a U-Net needs", {"network": {"in_channels": 1, "out_channels": 1, "dims": 5}}),
        ("do not fit", {"network": {"in_channels": 1, "out_channels": 1, "channels": [8], "features": 16}}),
        ("takes 1 and returns 1", {"channels": 3}),
        ("1 of a condition", {"condition_channels": 1}),
        ("does not know", {"architecture": "other.Net"}),
        ("does not describe a prior", {"architecture": "suite.foreign.AttentionUNet"}),
        ("there is no process", {"process": "brownian"}),
    ],
)
def test_cards_that_do_not_fit_are_refused(message: str, card: dict[str, Any], tmp_path: Path) -> None:
    file = rewritten(saved(tmp_path), card=card)
    with pytest.raises(InputError, match=message) as caught:
        load_prior(file)
    assert str(file) in str(caught.value)


def test_damaged_cards_are_refused(tmp_path: Path) -> None:
    file = rewritten(saved(tmp_path), card="{")
    with pytest.raises(InputError, match="card"):
        read_card(file)
    with pytest.raises(pydantic.ValidationError):
        make(offset=float("nan"))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        file = rewritten(saved(tmp_path), {"network.tail.bias": torch.tensor([value])})
        with pytest.raises(InputError, match="contain NaN or infinity"):
            load_prior(file)
    file = rewritten(saved(tmp_path), {"network.tail.bias": torch.zeros(2)})
    with pytest.raises(InputError, match="do not fit the network"):
        load_prior(file)
    file = rewritten(saved(tmp_path), {"network.more": torch.zeros(2)})
    with pytest.raises(InputError, match="do not fit the network"):
        load_prior(file)


def test_what_the_caller_needs_is_checked(tmp_path: Path) -> None:
    file = saved(tmp_path)
    with pytest.raises(InputError, match="has unit 'HU', and '1/cm' is needed"):
        load_prior(file, unit="1/cm")
    with pytest.raises(InputError, match="has channels 1, and 2 is needed"):
        load_prior(file, channels=2)


# --- denoisers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "vp-cosine", "ve", "flow"])
def test_equal_ratio_of_noise_to_signal_equal_answer(name: str) -> None:
    prior, proc, edm = make(), process(name), process("edm")
    x0, eps = signal(), signal().flip(0)
    for ratio in (0.05, 0.7, 8.0):
        answers = []
        for p in (proc, edm):
            t = p.time_of_log_snr(torch.tensor(ratio, dtype=torch.float64).log().neg().reshape(1, 1, 1, 1))
            answers.append(prior.denoiser(p, precision="float32")(p.marginal(x0, t, eps), t))
        assert torch.allclose(*answers, atol=1e-5)


def test_large_batches_are_split_and_counted_once() -> None:
    prior, x = make(), signal(7)
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    entered = []

    @contextmanager
    def clock() -> Iterator[None]:
        entered.append(True)
        yield

    whole = prior.denoiser(precision="float32", clock=clock)
    split = prior.denoiser(precision="float32", pixels=3 * 64)
    item = prior.denoiser(precision="float32", pixels=1)
    sizes: list[int] = []
    hook = prior.net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert torch.allclose(whole(x, t), split(x, t), atol=1e-6)
    assert torch.allclose(whole(x, t), item(x, t), atol=1e-6)
    hook.remove()
    assert sizes == [7, 3, 3, 1, 7] + [1] * 7
    assert [d.evaluations for d in (whole, split, item)] == [2, 1, 1]
    assert len(entered) == 2
    whole.predict(x, t)
    assert whole.evaluations == 3


def test_gradient_passes_to_the_signal_and_not_to_the_weights() -> None:
    denoiser = make().denoiser(precision="float32", pixels=64)
    x = signal().requires_grad_()
    denoiser(x, time(0.4)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(p.requires_grad for p in denoiser.prior.net.parameters())


def test_precision_is_kept_near_and_named() -> None:
    prior, x, t = make(), signal(), time(0.4)
    exact = prior.denoiser(precision="float32")(x, t)
    assert torch.allclose(prior.denoiser(precision="bfloat16")(x, t), exact, atol=0.03)
    assert not torch.equal(prior.denoiser(precision="bfloat16")(x, t), exact)
    assert prior.denoiser(precision="float32")(x.double(), t).dtype == torch.float64
    with pytest.raises(InputError, match="choose auto, float32 or bfloat16"):
        prior.denoiser(precision="float16")


def test_wrong_signals_and_processes_are_refused() -> None:
    denoiser = make().denoiser()
    with pytest.raises(InputError, match=r"has 1 channel\(s\), the signal has 2"):
        denoiser(signal(channels=2), time(0.4))
    with pytest.raises(InputError, match="one noise level per batch item"):
        denoiser(signal(), torch.full((3, 1, 8, 8), 0.4, dtype=torch.float64))
    assert denoiser.evaluations <= 1
    with pytest.raises(InputError, match="cannot serve the process ouve; use vp"):
        make().denoiser(process("ouve"))


def test_a_prior_without_condition_does_not_see_y() -> None:
    denoiser, x = make().denoiser(precision="float32"), signal()
    assert torch.equal(denoiser(x, time(0.4), signal().flip(0)), denoiser(x, time(0.4)))


def test_condition_reaches_the_network_and_is_required() -> None:
    prior, x, y = make(condition=1, process="ouve"), signal(), signal().flip(0)
    denoiser = prior.denoiser(precision="float32")
    assert isinstance(denoiser, PriorDenoiser)
    t, proc = time(0.4, 3), process("ouve")
    expected = prior.net(x - proc.beta(t).float() * y, proc.alpha(t), proc.sigma(t), y)
    assert torch.allclose(denoiser(x, t, y), expected, atol=1e-6)
    one = y[:1]
    split = prior.denoiser(precision="float32", pixels=64)
    assert torch.allclose(split(x, t, one), denoiser(x, t, one.expand_as(x)), atol=1e-6)
    with pytest.raises(InputError, match=r"needs a degraded signal of 1 channel\(s\), and none was given"):
        denoiser(x, t)
    with pytest.raises(InputError, match="the one given has 2"):
        denoiser(x, t, signal(channels=2))
    assert torch.isfinite(prior.denoiser(process("edm"))(x, t, y)).all()
