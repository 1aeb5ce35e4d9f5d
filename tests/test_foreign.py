"""Priors trained elsewhere: the same numbers as the published implementations, and right at every noise level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_cases import REFERENCE, SCHEDULER, adm_case, at, card, diffusers_case, folder, made_up, noise
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from suite.denoiser import HeadDenoiser, target
from suite.errors import InputError
from suite.foreign.adm import load_adm
from suite.foreign.chain import Chain, ChainNetwork
from suite.foreign.diffusers_unet import load_diffusers
from suite.foreign.unet import Attention, Layout, ResidualBlock, timestep_code
from suite.prior import load_prior
from suite.process import process


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- the same network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind,number", [("diffusers", 0), ("diffusers", 1), ("adm", 0), ("adm", 1), ("adm", 2)])
def test_output_is_that_of_the_published_implementation(kind: str, number: int, tmp_path: Path) -> None:
    case = REFERENCE[kind][number]
    prior = diffusers_case(tmp_path, number) if kind == "diffusers" else adm_case(number)
    x = noise(2, prior.card.channels, 8, 8)
    got = prior.net.network(x, prior.net.chain.timestep(at(prior, case["timesteps"])).reshape(-1))
    assert torch.allclose(got.flatten(), torch.tensor(case["output"]), atol=2e-5)


def test_a_live_diffusers_agrees(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    case = REFERENCE["diffusers"][1]
    theirs = diffusers.UNet2DModel(**case["config"]).eval()
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )
    theirs.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path / "scheduler")
    prior = load_diffusers(tmp_path, card(1))
    scheduler.set_timesteps(1000)
    t = at(prior, [400])
    x = noise(1, 1, 8, 8)
    expected = scheduler.step(theirs(x, 400).sample, 400, x).pred_original_sample
    got = prior.net(x, prior.process.alpha(t), prior.process.sigma(t))
    assert torch.allclose(got, expected, atol=1e-5)


def test_older_names_of_the_attention_weights_are_read(tmp_path: Path) -> None:
    case = REFERENCE["diffusers"][0]
    path = folder(tmp_path / "unet2d", case)
    weights = made_up(case["shapes"])
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {name.replace(f".{new}.", f".{old}."): value for name, value in weights.items()}
    assert any(".proj_attn." in name for name in weights)
    save_file(weights, path / "diffusion_pytorch_model.safetensors")
    old = load_diffusers(path, card(2)).net.state_dict()
    save_file(made_up(case["shapes"]), path / "diffusion_pytorch_model.safetensors")
    new = load_diffusers(path, card(2)).net.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in new)


def test_blocks_are_their_formulas() -> None:
    layout = Layout(
        in_channels=1, out_channels=1, widths=[8], blocks=1, down_heads=[2], up_heads=[2], down_residual=[False],
        up_residual=[False], frequencies=8, embedding=6, groups=4, middle_groups=4, scale_shift=True,
    )  # fmt: skip
    torch.manual_seed(0)
    block, x, e = ResidualBlock(layout, 8, 8), torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    scale, shift = F.linear(F.silu(e), block.embed.weight, block.embed.bias)[..., None, None].split(8, dim=1)
    h = F.conv2d(F.silu(F.group_norm(x, 4)), block.conv1.weight, block.conv1.bias, padding=1)
    h = F.conv2d(F.silu(F.group_norm(h, 4) * (1 + scale) + shift), block.conv2.weight, block.conv2.bias, padding=1)
    assert torch.allclose(block(x, e), x + h, atol=1e-5)
    ours, theirs = Attention(8, 2, None, 1e-5), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.copy_(ours.qkv.weight)
    theirs.in_proj_bias.copy_(ours.qkv.bias)
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    pixels = x.flatten(2).transpose(1, 2)
    assert torch.allclose(ours(x), x + theirs(pixels, pixels, pixels)[0].transpose(1, 2).reshape(x.shape), atol=1e-5)
    code = timestep_code(torch.tensor([7.5]), layout)[0]
    waves = [f(7.5 * 10000 ** (-k / 4)) for f in (math.cos, math.sin) for k in range(4)]
    assert torch.allclose(code, torch.tensor(waves), atol=1e-5)


def test_variance_channels_are_dropped_and_needed_when_announced() -> None:
    assert REFERENCE["adm"][0]["shapes"]["out.2.bias"] == [6]
    assert adm_case(0).net.network.tail.bias.shape == (3,)
    with pytest.raises(InputError, match="returns 6 channels"):
        adm_case(0, learn_sigma=False)


def test_flags_may_be_words_as_on_the_command_line() -> None:
    words = adm_case(0, channel_mult="1,2", attention_resolutions="4", num_channels="32", learn_sigma="True")
    lists = adm_case(0, channel_mult=[1, 2], attention_resolutions=[4])
    assert words.card.network == lists.card.network
    assert words.net.network.layout.widths == [32, 64]


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 3)])
def test_any_size_runs_and_gradients_pass(size: tuple[int, int], tmp_path: Path) -> None:
    prior = diffusers_case(tmp_path, 1)
    with torch.enable_grad():
        z = noise(2, 1, *size).requires_grad_()
        mean = prior.denoiser(process("vp"), precision="float32")(z, torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(mean.sum(), z)
    assert mean.shape == z.shape
    assert mean.isfinite().all()
    assert gradient.abs().max() > 0


# --- the chain -------------------------------------------------------------------------------------------------------

CHAINS = {
    "linear": Chain(),
    "scaled_linear": Chain(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine": Chain(schedule="cosine", steps=500),
    "given": Chain(betas=[0.01, 0.02, 0.2, 0.5], steps=4),
}


def alpha_bar(name: str, chain: Chain) -> Tensor:
    """By the definitions, one step after the other."""
    n, out, product = chain.steps, [], 1.0
    for i in range(n):
        share = i / (n - 1)
        if name == "linear":
            beta = 1e-4 + share * (0.02 - 1e-4)
        elif name == "scaled_linear":
            beta = (0.00085**0.5 + share * (0.012**0.5 - 0.00085**0.5)) ** 2
        elif name == "cosine":
            angles = ((k / n + 0.008) / 1.008 * math.pi / 2 for k in (i + 1, i))
            after, before = (math.cos(angle) ** 2 for angle in angles)
            beta = min(1 - after / before, 0.999)
        else:
            beta = [0.01, 0.02, 0.2, 0.5][i]
        product *= 1 - beta
        out.append(product)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("name", CHAINS)
def test_process_passes_through_the_chain(name: str) -> None:
    chain = CHAINS[name]
    proc, expected = chain.process(), alpha_bar(name, chain)
    t = (torch.arange(chain.steps, dtype=torch.float64) + 1) / chain.steps
    assert torch.allclose(proc.alpha(t) ** 2, expected, atol=1e-12, rtol=1e-9)
    assert torch.allclose(proc.sigma(t) ** 2, 1 - expected, atol=1e-12)
    assert torch.allclose(chain.timestep(t), torch.arange(chain.steps, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(proc.time_of_log_snr(proc.log_snr(t)), t, atol=1e-9)
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(proc.alpha(zero)) == 1.0
    assert float(proc.sigma(zero)) == 0.0


@pytest.mark.parametrize("name", CHAINS)
def test_process_is_smooth_and_falls(name: str) -> None:
    chain = CHAINS[name]
    proc = chain.process()
    t = torch.linspace(0.001, 0.999, 5 * chain.steps + 7, dtype=torch.float64)
    assert (proc.log_snr(t).diff() < 0).all()
    alpha1, _, sigma1 = proc.derivatives(t)
    h = 1e-7
    assert torch.allclose(alpha1, (proc.alpha(t + h) - proc.alpha(t - h)) / (2 * h), atol=2e-4)
    assert torch.allclose(sigma1, (proc.sigma(t + h) - proc.sigma(t - h)) / (2 * h), rtol=1e-3, atol=2e-3)


def test_rescaled_timesteps_are_thousandths() -> None:
    chain = adm_case(2).net.chain
    assert (chain.steps, chain.timestep_scale) == (500, 2.0)
    assert chain.timestep(torch.tensor([0.0, 1 / 500, 1.0])).tolist() == [0.0, 0.0, 998.0]


# --- any noise level -------------------------------------------------------------------------------------------------


class Exact(nn.Module):
    """The perfect network for data N(0, s^2), told the timestep only."""

    def __init__(self, chain: Chain, head: str, s: float) -> None:
        super().__init__()
        self.chain, self.head_name, self.s, self.head = chain, head, s, nn.Linear(1, 1, dtype=torch.float64)

    def forward(self, u: Tensor, timestep: Tensor) -> Tensor:
        t = ((timestep / self.chain.timestep_scale + 1) / self.chain.steps).reshape(-1, 1, 1, 1)
        proc = self.chain.process()
        alpha, sigma = proc.alpha(t), proc.sigma(t)
        mean = alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * u
        return target(self.head_name, proc, mean, (u - alpha * mean) / sigma, t)


def exact(head: str, chain: Chain = CHAINS["linear"], s: float = 0.4) -> ChainNetwork:
    layout = Layout(
        in_channels=1, out_channels=1, widths=[8], blocks=1, down_heads=[0], up_heads=[0], down_residual=[False],
        up_residual=[False], frequencies=8, embedding=8, groups=4, middle_groups=4,
    )  # fmt: skip
    net = ChainNetwork(layout, chain, head)
    net.network = Exact(chain, head, s)  # type: ignore[assignment]
    return net


@pytest.mark.parametrize("head", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", ["vp", "vp-cosine", "ve", "edm", "flow"])
def test_serves_every_unanchored_process_exactly(head: str, name: str) -> None:
    net, proc = exact(head), process(name)
    low, high = net.sigma_range
    ratio = torch.logspace(math.log10(low) + 1e-6, math.log10(min(high, 40.0)), 9, dtype=torch.float64)
    t = proc.time_of_log_snr(-ratio.log()).reshape(-1, 1, 1, 1)
    alpha, sigma = proc.alpha(t), proc.sigma(t)
    z = sigma * noise(9, 1, 4, 4).double()
    expected = alpha * 0.16 / (alpha**2 * 0.16 + sigma**2) * z
    assert torch.allclose(net(z, alpha, sigma), expected, rtol=1e-6, atol=1e-9)


def test_on_the_chain_it_is_the_head_alone(tmp_path: Path) -> None:
    for head, prediction in (("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")):
        case = REFERENCE["diffusers"][0]
        path = folder(tmp_path / head, case, SCHEDULER | {"prediction_type": prediction})
        prior = load_diffusers(path, card(2))
        t, x = at(prior, case["timesteps"]), noise(2, 2, 8, 8)
        raw = torch.tensor(case["output"]).reshape(x.shape)
        plain = HeadDenoiser(lambda *_, raw=raw: raw, prior.process, head)
        denoiser = prior.denoiser(precision="float32")
        assert prior.card.head == head
        assert torch.allclose(denoiser(x, t), plain(x, t), rtol=1e-4, atol=2e-4)
        assert denoiser.evaluations == 1


def test_beyond_the_chain_it_asks_the_nearest_timestep() -> None:
    net = exact("eps")
    z = noise(2, 1, 4, 4).double()
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    low, high = net.sigma_range
    assert math.isclose(low, math.sqrt(1e-4 / (1 - 1e-4)), rel_tol=1e-9)
    assert torch.equal(net(z, one, 0 * one), z)
    near = net(z, one, one * low / 10)
    assert torch.allclose(near, 0.16 / (0.16 + low**2 / 100) * z, atol=1e-4)
    t = torch.ones_like(one)
    assert torch.allclose(net(z, 0 * one, one), net(z, net.process.alpha(t), net.process.sigma(t)))
    edge = net(z, one, one * high * (1 - 1e-9))
    assert torch.allclose(net(z, one, one * high * (1 + 1e-9)), edge, rtol=1e-6, atol=1e-12)
    assert net(z, one * 1e-9, one).isfinite().all()


@pytest.mark.parametrize("head", ["eps", "v"])
def test_a_chain_that_ends_in_noise_is_served(head: str) -> None:
    net = exact(head, CHAINS["cosine"])
    assert net.sigma_range[1] == pytest.approx(1e3)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert torch.allclose(net(noise(1, 1, 4, 4).double(), 0 * one, one), 0 * one, atol=2e-3)


def test_one_level_per_item_only() -> None:
    z, level = noise(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5)
    with pytest.raises(InputError, match="one noise level per batch item"):
        exact("eps")(z, level, level)
    with pytest.raises(InputError, match="without a condition"):
        exact("eps")(z, level[..., :1, :1], level[..., :1, :1], z)
    with pytest.raises(InputError, match="cannot serve the process ouve"):
        adm_case(0).denoiser(process("ouve"))


# --- the card, and a file of our own ---------------------------------------------------------------------------------


def test_card_is_the_users_and_the_networks(tmp_path: Path) -> None:
    file = tmp_path / "card.yaml"
    file.write_text("unit: HU\nscale: 500\noffset: 100\nchannels: 3\npixel_size_mm: [0.7, 0.7]\nname: borrowed\n")
    prior = load_adm(made_up(REFERENCE["adm"][0]["shapes"]), REFERENCE["adm"][0]["config"], file)
    assert (prior.card.name, prior.card.unit, prior.card.pixel_size_mm) == ("borrowed", "HU", (0.7, 0.7))
    assert prior.card.value_range == (-400.0, 600.0)
    assert "8 pixels" in prior.card.limits[0]
    x = torch.tensor([-400.0, 100.0, 600.0])
    assert prior.to_network(x).tolist() == [-1.0, 0.0, 1.0]
    assert torch.equal(prior.from_network(prior.to_network(x)), x)


@pytest.mark.parametrize("kind", ["diffusers", "adm"])
def test_saved_prior_loads_like_any_other(kind: str, tmp_path: Path) -> None:
    prior = diffusers_case(tmp_path, 1) if kind == "diffusers" else adm_case(1)
    prior.save(tmp_path / "own.safetensors", half=False)
    again = load_prior(tmp_path / "own.safetensors", unit="HU", channels=prior.card.channels)
    t, x = torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64), noise(2, prior.card.channels, 8, 8)
    for proc in (None, process("edm")):
        ours, theirs = (p.denoiser(proc, precision="float32")(x, t) for p in (again, prior))
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert again.card == prior.card
    assert again.process.name == "vp-discrete"
