"""The backbone and its preconditioning, against the formulas of Karras et al. (2022), table 1."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from suite.errors import InputError
from suite.network import Preconditioned, UNet, bfloat16_convolutions
from suite.training import residual_loss

SIGMAS = [1e-3, 0.03, 0.5, 7.0, 80.0]


class Recorder(nn.Module):
    """Notes what it was called with; returns a fixed function of its input."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.x, self.c_noise = x, c_noise
        return torch.sin(3 * x[:, :1])


def level(*values: float, dims: int = 2) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *(1,) * (dims + 1))


def backbone(dims: int = 2, in_channels: int = 1, out_channels: int = 1) -> UNet:
    """A small U-Net whose noise levels matter (they do not before training)."""
    torch.manual_seed(0)
    net = UNet(in_channels, out_channels, [8, 12, 16], blocks=1, dims=dims, features=16)
    for name, value in net.named_parameters():
        if "modulation" in name:
            nn.init.normal_(value, std=0.5)
    return net.eval()


def image(dims: int = 2, batch: int = 2, channels: int = 1, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, *(size,) * dims, generator=torch.Generator().manual_seed(1))


# --- preconditioning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_coefficients_are_those_of_the_table(sigma: float) -> None:
    s = 0.5
    network = Recorder()
    net, z = Preconditioned(network, s), image().double()
    out = net(z, level(1.0), level(sigma))
    c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / math.sqrt(sigma**2 + s**2)
    c_in, c_noise = 1 / math.sqrt(sigma**2 + s**2), math.log(sigma) / 4
    assert torch.allclose(network.x, c_in * z)
    assert torch.allclose(network.c_noise, torch.full((2,), c_noise, dtype=torch.float64))
    assert torch.allclose(out, c_skip * z + c_out * torch.sin(3 * c_in * z))


@given(st.floats(0.01, 1.0), st.floats(1e-3, 50.0))
def test_only_the_ratio_of_noise_to_signal_matters(alpha: float, ratio: float) -> None:
    net, z = Preconditioned(Recorder(), 0.5), image().double()
    here = net(alpha * z, level(alpha), level(alpha * ratio))
    assert torch.allclose(here, net(z, level(1.0), level(ratio)), rtol=1e-9, atol=1e-12)


def test_ends_of_the_noise_range() -> None:
    net, z = Preconditioned(Recorder(), 0.5), image().double()
    assert torch.allclose(net(z, level(0.7), level(0.0)), z / 0.7)
    assert torch.allclose(net(z, level(0.0), level(2.0)), 0.5 * torch.sin(3 * z / 2))


def test_embedding_stays_within_the_trained_levels() -> None:
    network = Recorder()
    net = Preconditioned(network, 0.5, (0.01, 10.0))
    net(image(batch=4), level(1.0, 1.0, 1.0, 0.0), level(1e-4, 1.0, 50.0, 1.0))
    assert torch.allclose(network.c_noise, torch.tensor([0.01, 1.0, 10.0, 10.0]).log() / 4)


@pytest.mark.parametrize("sigma", [1e-2, 0.5, 20.0])
@pytest.mark.parametrize("anchored", [False, True])
def test_training_target_has_unit_variance_for_data_of_the_stated_scale(sigma: float, anchored: bool) -> None:
    from suite.process import process

    proc = process("ouve") if anchored else process("edm")
    rng = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(64, 1, 32, 32, generator=rng) for _ in range(2))
    zero = backbone()
    nn.init.zeros_(zero.tail.weight)
    nn.init.zeros_(zero.tail.bias)  # F = 0: the loss is the target's own square
    t = proc.time_of_log_snr(torch.full((64,), -math.log(sigma), dtype=torch.float64))
    y = image(batch=64, size=32) if anchored else None
    loss = residual_loss(Preconditioned(_Unconditional(zero), 0.5), proc, 0.5 * x0, y, t, eps)
    assert loss.mean().item() == pytest.approx(1.0, abs=0.02)


class _Unconditional(nn.Module):
    """Drops the condition, so that one backbone serves both."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.net(x[:, :1], c_noise)


def test_one_level_per_item_only() -> None:
    net, z = Preconditioned(backbone(), 0.5), image()
    for wrong in (torch.full((2, 1, 8, 8), 0.3), torch.full((2,), 0.3)):
        with pytest.raises(InputError, match="one noise level per batch item"):
            net(z, wrong, wrong)


# --- the U-Net -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims,size", [(1, (13,)), (1, (1,)), (2, (8, 8)), (2, (7, 9)), (2, (1, 2)), (3, (3, 5, 6))])
def test_any_size_in_one_two_and_three_dimensions(dims: int, size: tuple[int, ...]) -> None:
    net = backbone(dims, in_channels=3, out_channels=2)
    x = torch.randn(1, 3, *size)
    out = net(x, torch.tensor([0.2]))
    assert out.shape == (1, 2, *size)
    whole = tuple(-(-n // 4) * 4 for n in size)
    index = [torch.arange(n).clamp_max(s - 1) for n, s in zip(whole, size, strict=True)]
    padded = x[:, :, *torch.meshgrid(*index, indexing="ij")]
    assert torch.equal(out, net(padded, torch.tensor([0.2]))[(..., *map(slice, size))])


def test_detail_passes_by_the_coarse_levels() -> None:
    net, x = backbone(), image()
    for layer in net.grow:
        nn.init.zeros_(layer.weight)
    detail = net(x, torch.tensor([0.2])) - net(0 * x, torch.tensor([0.2]))
    assert detail.abs().mean() > 0.05


def test_items_of_a_batch_do_not_touch() -> None:
    net, z = Preconditioned(backbone(), 0.5), image(batch=3)
    alpha, sigma = level(1.0, 0.8, 0.3), level(0.1, 0.6, 0.95)
    together = net(z, alpha, sigma)
    for i in range(3):
        alone = net(z[i : i + 1], alpha[i : i + 1], sigma[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)
    assert not torch.allclose(together[:1], net(z[:1], alpha[1:2], sigma[1:2]), atol=1e-3)
    assert torch.allclose(net(z, alpha[:1], sigma[:1]), net(z, alpha[:1].expand(3, 1, 1, 1), sigma[:1]), atol=1e-6)


def test_input_is_left_as_it_was_with_and_without_gradients() -> None:
    net, z = Preconditioned(backbone(), 0.5), image()
    before = z.clone()
    with torch.no_grad():
        quiet = net(z, level(1.0), level(0.5))
    assert torch.equal(quiet, net(z, level(1.0), level(0.5)))
    assert torch.equal(z, before)


def test_float64_signals_through_a_float32_network() -> None:
    net, z = Preconditioned(backbone(), 0.5), image()
    out = net(z.double(), level(1.0), level(0.5))
    assert out.dtype == torch.float64
    assert torch.allclose(out, net(z, level(1.0), level(0.5)).double(), atol=1e-6)
    tiny = level(1e-9)
    assert torch.allclose(net(z.double(), level(1.0), tiny), z.double(), atol=1e-8, rtol=0)


def test_gradient_through_the_denoiser_is_the_derivative() -> None:
    net = Preconditioned(backbone().double(), 0.5)
    z = image(size=4, batch=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: net(x, level(0.8), level(0.6)), (z,))
    tangent = image(size=4, batch=1).double().roll(1, -1)
    with torch.no_grad():
        _, forward = torch.func.jvp(lambda x: net(x, level(0.8), level(0.6)), (z.detach(),), (tangent,))
    step = 1e-6 * tangent
    difference = net(z + step, level(0.8), level(0.6)) - net(z - step, level(0.8), level(0.6))
    assert torch.allclose(forward, difference / 2e-6, atol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_single_item_is_treated_as_in_a_batch(dims: int) -> None:
    """With one noise level for all, the modulation goes into the weights; the result is the same."""
    net = Preconditioned(backbone(dims), 0.5)
    z = torch.randn((2, 1, *(12,) * dims), generator=torch.Generator().manual_seed(1))
    alpha, sigma = level(1.0, 0.7, dims=dims), level(0.5, 2.0, dims=dims)
    with torch.no_grad():
        together = net(z, alpha, sigma)
        apart = torch.cat([net(z[k : k + 1], alpha[k : k + 1], sigma[k : k + 1]) for k in range(2)])
    assert torch.allclose(together, apart, atol=1e-5)
    with torch.enable_grad():
        assert torch.allclose(apart[:1], net(z[:1], alpha[:1], sigma[:1]), atol=1e-5)


def test_bfloat16_weights_are_near_and_leave_the_network_alone() -> None:
    net, z = Preconditioned(backbone(), 0.5), image()
    half = bfloat16_convolutions(net)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert half.network.head.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = half(z, level(1.0), level(0.5))
    assert torch.allclose(found, net(z, level(1.0), level(0.5)), atol=0.03)


def test_bfloat16_is_near() -> None:
    net, z = Preconditioned(backbone(), 0.5), image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(z, level(1.0), level(0.5))
    assert half.dtype == torch.float32
    assert torch.allclose(half, net(z, level(1.0), level(0.5)), atol=0.03)


@pytest.mark.parametrize(
    "wrong", [{"dims": 4}, {"dims": 0}, {"channels": []}, {"channels": [8, 0]}, {"blocks": 0}, {"in_channels": 0}]
)
def test_impossible_networks_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="a U-Net needs"):
        UNet(**{"in_channels": 1, "out_channels": 1, "channels": [8], "dims": 2} | wrong)
