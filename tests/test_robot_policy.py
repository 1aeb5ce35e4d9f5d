"""The policy in its loop: samplers against a closed form, deadlines, fuzzed observations, batches, the file."""

from __future__ import annotations

import copy
import gc
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from domains.robot.calibration import calibrate
from domains.robot.constraints import Constraint, prefix
from domains.robot.data import with_commands
from domains.robot.levels import SteadyMLP
from domains.robot.network import ActionNetwork
from domains.robot.policy import Policy
from domains.robot.policyconfig import GuardConfig, PolicyConfig, limits_of
from domains.robot.policyfile import PolicyFile, checksum, load_policy_file
from domains.robot.samplers import EVALUATIONS, SAMPLERS, Previous, Sampler, rising_times
from domains.robot.verbs import self_test_deviation
from domains.robot.watched import OutOfTime, Pace, Watched
from domains.robot.windows import windows
from suite.errors import InputError
from suite.noise import Noise
from suite.process import process
from tests.robot_cases import demonstrations, policy_file

MEAN, STD = 0.3, 0.2


@pytest.fixture(scope="module")
def file() -> PolicyFile:
    return policy_file()


def observation(k: int = 0) -> np.ndarray[Any, Any]:
    return np.array([0.1 + 0.01 * k, -0.2, 0.5, 0.4, 0.9])


# --- samplers ---------------------------------------------------------------------------------------------------------


class _Gaussian:
    """The exact denoiser of chunks whose elements are N(MEAN, STD^2)."""

    process, horizon, sigma_range, sigma_data = process("vp-cosine"), 6, (0.01, 40.0), 0.4

    def denoiser(self) -> Any:
        from suite.denoiser import HeadDenoiser

        def mean(z: Tensor, t: Tensor, _y: Tensor | None) -> Tensor:
            a, s = (f(t).to(z.dtype) for f in (self.process.alpha, self.process.sigma))
            return (a * STD**2 * z + s**2 * MEAN) / (a**2 * STD**2 + s**2)

        return HeadDenoiser(mean, self.process, "x0")


def exact(name: str, steps: int | None = None) -> tuple[Sampler, Tensor]:
    """A sampler on the exact denoiser, calibrated on exact draws, and 500 such draws."""
    net: Any = _Gaussian()
    draws = MEAN + STD * torch.randn(500, 2, 6, generator=torch.Generator().manual_seed(1))
    ratios = torch.logspace(-1.3, 0.7, 12)
    calibration = calibrate(net, draws, torch.zeros(500, 1), ratios, Noise.of(2))
    wide = torch.full((2,), 10.0)
    return Sampler(net, -wide, wide, calibration, name, steps, stride=2, anchors=draws[:20]), draws


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 100), ("ddim", 60), ("dpmpp-2m", 40), ("heun", 39)])
def test_cold_samplers_draw_the_exact_law(name: str, steps: int) -> None:
    sampler, _ = exact(name, steps)
    drawn = sampler.draw(torch.zeros(3000, 1), Noise.of(0))
    assert drawn.chunk is not None and drawn.nfe <= steps and drawn.complete
    assert float(drawn.chunk.mean()) == pytest.approx(MEAN, abs=0.01)
    # The last step goes to the mean, and ddpm injects the variance of its posterior for known data: both shorten the spread.
    assert float(drawn.chunk.std()) == pytest.approx(STD, rel=0.1)


def test_the_residual_test_keeps_what_fits_and_leaves_what_does_not() -> None:
    sampler, draws = exact("warm", 20)
    kept = sampler.draw(torch.zeros(500, 1), Noise.of(5), Previous(draws))
    assert kept.chunk is not None and float(kept.restarted.float().mean()) < 0.05
    assert float((kept.chunk - draws).square().mean().sqrt()) < 1.2 * STD  # continues the guess, re-noised a little
    wrong = sampler.draw(torch.zeros(500, 1), Noise.of(5), Previous(draws + 3))
    assert wrong.chunk is not None and bool(wrong.restarted.all()) and wrong.nfe <= 20
    assert float(wrong.chunk.mean()) == pytest.approx(MEAN, abs=0.03)


def test_plain_warm_start_cannot_leave_a_wrong_guess() -> None:
    sampler, draws = exact("rti")
    drawn = sampler.draw(torch.zeros(500, 1), Noise.of(5), Previous(draws + 3))
    assert drawn.chunk is not None and float(drawn.chunk.mean()) > MEAN + 2


def test_the_stream_equals_its_recursion() -> None:
    """Three turns of the buffer on the exact denoiser, against the recursion of Hoeg et al. written out in NumPy."""
    steps, stride, horizon = 4, 2, 6
    sampler, _ = exact("stream", steps)
    rng = np.random.default_rng(0)
    proc = sampler.process

    def schedule(t: Any) -> Any:
        times = torch.as_tensor(t, dtype=torch.float64)
        return proc.alpha(times).numpy(), proc.sigma(times).numpy()

    level = np.repeat(np.arange(1, 4) / 3, stride)
    a, s = schedule(level)
    buffer = a * 0.3 + s * rng.normal(size=(5, 2, horizon))
    given = torch.tensor(buffer, dtype=torch.float32)
    for _ in range(3):
        drawn = sampler.draw(torch.zeros(5, 1), Noise.of(1), Previous(given, given))
        for k in range(steps):
            t, u = level - k / steps / 3, level - (k + 1) / steps / 3
            (at, st), (au, su) = schedule(t), schedule(np.where(u < 1e-9, 0.0, u))
            mean = (at * STD**2 * buffer + st**2 * MEAN) / (at**2 * STD**2 + st**2)
            buffer = au * mean + np.where(u < 1e-9, 0.0, su) * (buffer - at * mean) / st
            buffer = np.where(u < 1e-9, mean, buffer)
        assert drawn.chunk is not None and drawn.buffer is not None and drawn.nfe == steps
        np.testing.assert_allclose(drawn.chunk[..., :stride].numpy(), buffer[..., :stride], atol=1e-4)
        np.testing.assert_allclose(drawn.buffer[..., :-stride].numpy(), buffer[..., stride:], atol=1e-4)
        buffer, given = drawn.buffer.double().numpy(), drawn.buffer


def test_levels_of_the_stream() -> None:
    levels = rising_times(8, 2, torch.tensor([1.0, 0.0]))
    assert levels[0].tolist() == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    assert levels[1].tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_the_anchor_that_fits_is_chosen() -> None:
    """Anchors far from the data are never drawn."""
    sampler, draws = exact("anchor", 8)
    sampler.anchors = torch.cat([draws[:5] + 4, draws[5:10]])
    drawn = sampler.draw(torch.zeros(300, 1), Noise.of(3))
    assert drawn.chunk is not None and drawn.nfe == 8
    assert float(drawn.chunk.mean()) == pytest.approx(MEAN, abs=0.05) and float(drawn.chunk.max()) < 1.5


def test_constraints_are_met_and_the_rest_stays_free() -> None:
    """Independent actions: those that are known take their values, the others are what they would have been."""
    sampler, _ = exact("ddim", 40)
    values = torch.zeros(1000, 2, 6)
    values[..., :2] = 0.6
    std = torch.full((6,), torch.inf)
    std[:2] = 0.004
    drawn = sampler.draw(torch.zeros(1000, 1), Noise.of(0), constraint=Constraint(values, std))
    assert drawn.chunk is not None
    np.testing.assert_allclose(drawn.chunk[..., :2].numpy(), 0.6, atol=0.02)
    free = sampler.draw(torch.zeros(1000, 1), Noise.of(0))
    assert free.chunk is not None
    np.testing.assert_allclose(drawn.chunk[..., 2:].numpy(), free.chunk[..., 2:].numpy(), atol=1e-3)


def test_a_limit_of_velocity_is_kept_by_guidance_and_known_actions_with_it() -> None:
    """Independent actions have steps of 1.4 STD; guided, hardly one exceeds the limit, and the law stays put."""
    sampler, _ = exact("ddim", 40)
    rate = torch.tensor([0.5 * STD, 100.0])
    values, std = torch.zeros(300, 2, 6), torch.full((6,), torch.inf)
    values[..., 0], std[0] = MEAN, 0.004
    drawn = sampler.draw(torch.zeros(300, 1), Noise.of(0), constraint=Constraint(values, std, rate))
    free = sampler.draw(torch.zeros(300, 1), Noise.of(0))
    assert drawn.chunk is not None and free.chunk is not None
    steps, before = (chunk.diff(dim=-1).abs() for chunk in (drawn.chunk, free.chunk))
    assert float((before[:, 0] > rate[0]).float().mean()) > 0.6
    assert float((steps[:, 0] > 1.2 * rate[0]).float().mean()) < 0.04
    np.testing.assert_allclose(drawn.chunk[..., 0].numpy(), MEAN, atol=0.05)
    torch.testing.assert_close(drawn.chunk[:, 1, 1:], free.chunk[:, 1, 1:], atol=0.02, rtol=0)  # no limit there


def test_real_time_chunking_weights() -> None:
    found = prefix(torch.zeros(1, 2, 8), 2, 6, 0.5)
    std = found.std[0, 0]
    assert float(std[1]) < 0.01 and bool((std[2:6].diff() > 0).all()) and bool(std[6:].isinf().all())
    with pytest.raises(InputError, match="delay"):
        prefix(torch.zeros(1, 2, 8), 5, 3, 0.5)


@pytest.mark.parametrize("name", ["stream", "anchor", "euler"])
def test_what_is_not_there_is_refused(file: PolicyFile, name: str) -> None:
    card = file.card.model_copy(update={"stride": None})
    with pytest.raises(InputError, match=name):
        Policy(replace(file, card=card, anchors=None), PolicyConfig(sampler=name))


@pytest.mark.parametrize("head", ["edm", "eps", "x0", "v", "flow"])
@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_every_head_learns(kind: str, head: str) -> None:
    """One chunk, learned by heart: the loss must fall far below that of zero."""
    torch.manual_seed(0)
    shape = {"mlp": {"width": 48, "blocks": 1}, "unet": {"channels": [16, 16]}}[kind]
    settings = {"action_dim": 2, "horizon": 4, "condition_dim": 3, "features": 16, **shape}
    proc = process("flow" if head == "flow" else "vp-cosine")
    net = ActionNetwork(kind, head, proc, 0.5, (0.01, 40.0), settings)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x0 = torch.tensor([[[0.5, -0.3, 0.2, 0.1], [0.0, 0.4, -0.4, 0.6]]]).expand(64, 2, 4)
    condition = torch.zeros(64, 3)
    rng = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        t = 0.05 + 0.9 * torch.rand(64, generator=rng, dtype=torch.float64)
        loss = net.loss(x0, condition, t, torch.randn(x0.shape, generator=rng)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    t = torch.full((64, 1, 1), 0.3, dtype=torch.float64)
    z = proc.marginal(x0, t, torch.randn(x0.shape, generator=rng))
    assert float((net.denoiser()(z, t, condition) - x0).square().mean()) < float((z - x0).square().mean())


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sources_and_evaluations(file: PolicyFile, sampler: str) -> None:
    policy = Policy(file, PolicyConfig(sampler=sampler))
    results = [policy.act(observation(k)) for k in range(6)]
    fresh = EVALUATIONS["ddim"] if sampler in ("rti", "warm", "stream") else EVALUATIONS[sampler]
    assert results[0].source == "fresh" and 0 < results[0].nfe <= fresh
    assert results[0].action.shape == (3,) and results[0].chunk.shape == (8, 3)
    if policy.sampler.warm:
        assert {r.source for r in results[1:]} <= {"warm", "fresh"} and all(
            0 < r.nfe <= (3 if r.source == "warm" else 10) for r in results
        )
        bounded = Policy(file, PolicyConfig(sampler=sampler, steps=3))
        assert all(0 < bounded.act(observation(k)).nfe <= 3 for k in range(6))
    elif sampler == "stream":
        assert [r.source for r in results] == ["fresh", "queue", "warm", "queue", "warm", "queue"]
    else:
        assert [r.source for r in results] == ["fresh", *["queue"] * 3, "fresh", "queue"]
        np.testing.assert_allclose(results[1].chunk[0], results[0].chunk[1], atol=1e-6)


def test_the_seed_decides_and_the_batch_does_not(file: PolicyFile) -> None:
    def path(seed: int, batch: int) -> np.ndarray[Any, Any]:
        policy = Policy(file)
        policy.reset(seed)
        seen = np.stack([observation(i) for i in range(batch)])
        return np.stack([policy.act(seen).action for _ in range(4)])

    np.testing.assert_array_equal(path(3, 2), path(3, 2))
    np.testing.assert_allclose(path(3, 4)[:, :2], path(3, 2), atol=1e-5)
    assert np.abs(path(3, 2) - path(4, 2)).max() > 1e-4


def test_fuzzed_observations_never_lead_out_of_the_limits(file: PolicyFile) -> None:
    """NaN, infinite, huge, missing, stale and jumping observations; 10,000 commands in batches."""
    guard = GuardConfig(velocity=3.0, acceleration=20.0, jerk=300.0)
    policy = Policy(file, PolicyConfig(steps=2, guard=guard))
    rng = np.random.default_rng(0)
    commands = []
    for k in range(250):
        seen: Any = rng.normal(0, 1, (40, 5))
        seen[rng.random((40, 5)) < 0.05] = np.nan
        seen[rng.random((40, 5)) < 0.03] = np.inf
        seen[rng.random((40, 5)) < 0.05] *= 1e30
        stamp = time.monotonic() - (1e3 if k % 7 == 3 else 0.0)
        result = policy.act(None if k % 11 == 5 else seen, timestamp=stamp)
        assert set(result.source) <= {"fresh", "warm", "queue", "hold"}
        commands.append(result.action)
    path = np.stack(commands)
    limits = policy.limits
    assert np.isfinite(path).all() and (path >= limits.low).all() and (path <= limits.high).all()
    rates = (limits.velocity, limits.acceleration, limits.jerk)
    for order, most in enumerate(rates, 1):
        assert (np.abs(np.diff(path, order, axis=0)) <= most * 0.1**order * (1 + 1e-6)).all()
    assert {"missing", "stale", "non_finite", "range", "teleport", "velocity"} <= set(policy.counters)


def test_a_lost_observation_uses_the_queue_and_then_stops(file: PolicyFile) -> None:
    policy = Policy(file)
    policy.act(observation())
    sources = [policy.act(None).source for _ in range(12)]
    assert sources == ["queue"] * 7 + ["hold"] * 5
    last = [policy.act(None).action for _ in range(12)]
    np.testing.assert_allclose(last[-1], last[-2], atol=1e-9)


def test_a_network_that_gives_nan_is_caught(file: PolicyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(file)
    policy.act(observation())
    tail = policy.sampler.net.network.tail
    monkeypatch.setitem(tail._parameters, "bias", torch.full_like(tail.bias, torch.nan))
    result = policy.act(observation())
    assert result.source == "queue" and result.interventions["non_finite"] == 1  # type: ignore[index]
    assert np.isfinite(result.action).all()


def test_the_deadline_cuts_the_sampler_short(file: PolicyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that the network moves: 10 ms for each evaluation."""
    clock = SimpleNamespace(now=0.0)
    for module in ("policy", "watched"):
        monkeypatch.setattr(f"domains.robot.{module}.time", SimpleNamespace(perf_counter=lambda: clock.now))
    policy = Policy(file, PolicyConfig(sampler="ddim"))
    answer = policy.sampler.inner

    def slow(*args: Any) -> Any:
        clock.now += 0.010
        return answer(*args)

    slow.process = answer.process  # type: ignore[attr-defined]
    monkeypatch.setattr(policy.sampler, "inner", slow)
    policy.act(observation())
    policy.reset()
    cut = policy.act(observation(), deadline_s=0.055)
    assert cut.nfe == 5 and cut.latency <= 0.055 and cut.source == "fresh"
    assert cut.interventions["deadline"] == 1  # type: ignore[index]
    none = policy.act(observation(), deadline_s=0.005)
    assert none.source == "queue" and none.nfe == 0
    policy.reset()
    hold = policy.act(observation(), deadline_s=0.005)
    assert hold.source == "hold" and hold.nfe == 0 and np.isfinite(hold.action).all()


def test_one_slow_evaluation_is_not_the_last(file: PolicyFile) -> None:
    policy = Policy(file)
    policy.sampler.pace.learn(100.0)
    assert policy.act(observation(), deadline_s=5.0).nfe == 10  # the process may not have been running
    policy.reset()
    policy.sampler.pace.learn(100.0)
    policy.sampler.pace.learn(100.0)
    results = [policy.act(observation(), deadline_s=5.0) for _ in range(10)]
    assert results[0].nfe == 0 and results[0].source == "hold" and results[-1].nfe == 3


def test_a_jump_is_followed_from_noise(file: PolicyFile) -> None:
    policy = Policy(file)
    policy.act(observation())
    assert policy.act(observation(1)).interventions.get("teleport") is None  # type: ignore[union-attr]
    moved = policy.act(observation() * np.array([-9, 1, 1, 1, 1]))
    assert moved.interventions["teleport"] == 1 and moved.source == "fresh"  # type: ignore[index]


def test_lerobots_shapes(file: PolicyFile) -> None:
    batch = {"observation.state": torch.tensor(np.stack([observation()] * 3))}
    policy = Policy(file)
    assert policy.predict_action_chunk(batch).shape == (3, 8, 3)
    assert policy.select_action(batch).shape == (3, 3) and policy.select_action(batch).dtype == torch.float32


def test_wrong_shapes_are_refused(file: PolicyFile) -> None:
    policy = Policy(file)
    with pytest.raises(InputError, match="5 numbers"):
        policy.act(np.zeros(4))
    policy.act(np.zeros((2, 5)))
    with pytest.raises(InputError, match="reset"):
        policy.act(np.zeros((3, 5)))


def test_limits_come_from_settings_box_and_data(file: PolicyFile) -> None:
    found = limits_of(file, GuardConfig(velocity=[1.0, 2.0, 3.0]), ([-5, -5, -np.inf], [5, 5, np.inf]))
    assert found.low.tolist() == [-5, -5, 7] and found.velocity.tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"guard\.jerk has 2"):
        limits_of(file, GuardConfig(jerk=[1.0, 2.0]))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_round_trip(file: PolicyFile, tmp_path: Any) -> None:
    file.save(tmp_path / "p.safetensors")
    again = load_policy_file(tmp_path / "p.safetensors")
    assert again.card == file.card and self_test_deviation(again) < 1e-5
    np.testing.assert_allclose(
        Policy(again).act(observation()).action, Policy(file).act(observation()).action, atol=1e-5
    )


def rewritten(file: PolicyFile, path: Any, honest: bool, **changes: Tensor | None) -> Any:
    """The file with tensors changed or removed, the checksum made to fit when `honest`."""
    file.save(path)
    with safe_open(path, "pt") as f:
        metadata, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    tensors = {k: v for k, v in (tensors | changes).items() if v is not None}
    if honest:
        metadata["checksum"] = checksum(tensors, metadata["card"])
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("key", ["normalizer.action_scale", "selftest.chunk", "calibration.limit", "net.tail"])
def test_incomplete_files_are_refused(file: PolicyFile, tmp_path: Any, key: str) -> None:
    key = "net.network.tail.weight" if key == "net.tail" else key
    with pytest.raises(InputError, match=r"p\.safetensors"):
        load_policy_file(rewritten(file, tmp_path / "p.safetensors", True, **{key: None}))


def test_a_changed_file_is_refused_and_a_deviating_one_found(file: PolicyFile, tmp_path: Any) -> None:
    tail = file.net.state_dict()["network.tail.weight"] * 1.2
    with pytest.raises(InputError, match="checksum"):
        load_policy_file(rewritten(file, tmp_path / "p.safetensors", False, **{"net.network.tail.weight": tail}))
    changed = rewritten(file, tmp_path / "q.safetensors", True, **{"net.network.tail.weight": tail})
    assert self_test_deviation(load_policy_file(changed)) > 1e-3


def test_truncated_and_foreign_files_are_refused(file: PolicyFile, tmp_path: Any) -> None:
    file.save(tmp_path / "p.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes((tmp_path / "p.safetensors").read_bytes()[:5000])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    for path in (half, foreign, tmp_path / "absent.safetensors"):
        with pytest.raises(InputError, match=path.name):
            load_policy_file(path)


def test_remembered_levels_change_no_number(file: PolicyFile) -> None:
    """Also after the weights have changed in place, and where every action has a time of its own."""
    net = copy.deepcopy(file.net)
    quick, plain = SteadyMLP(net), net.denoiser()
    x, seen = torch.randn(1, 3, 8), torch.randn(1, file.card.network["condition_dim"])
    times = [torch.full((1, 1, 1), t, dtype=torch.float64) for t in (0.2, 0.7, 0.2)]
    for t in [*times, torch.linspace(0.1, 0.9, 8).double().reshape(1, 1, 8)]:
        assert torch.equal(quick(x, t, seen), plain(x, t, seen))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    assert torch.equal(quick(x, times[0], seen), plain(x, times[0], seen))
    both = torch.cat(times[:2])
    assert torch.equal(
        quick(x.repeat(2, 1, 1), both, seen.repeat(2, 1)), plain(x.repeat(2, 1, 1), both, seen.repeat(2, 1))
    )
    with pytest.raises(ValueError, match="backbone mlp"):
        SteadyMLP(policy_file(head="eps").net)


def test_garbage_is_not_collected_within_a_call(file: PolicyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = Policy(file), []
    draw = policy.sampler.draw
    monkeypatch.setattr(policy.sampler, "draw", lambda *args: [seen.append(gc.isenabled()), draw(*args)][1])
    policy.act(observation())
    assert seen == [False] and gc.isenabled()


def test_chunks_beside_a_linear_prediction(tmp_path: Any) -> None:
    """The network answers for the difference; everything outside it, and the file, stays absolute."""
    data = {"angles": [4], "position": [0, 1, 0], "held_out": 3, "commands": True}
    made = policy_file(data=data, linear=True, stream={"share": 0.0})
    assert made.card.linear and made.card.observed == ["x", "y", "goal_x", "goal_y", "angle"]
    made.save(tmp_path / "relative.safetensors")
    again = load_policy_file(tmp_path / "relative.safetensors")
    assert self_test_deviation(again) < 1e-3
    held = windows([with_commands(demonstrations(), [0, 1, 0]).episodes[0]], again.normalizer, 2, 8)
    far = again.sampler("ddim", 1).from_noise(held.condition, torch.randn(held.chunk.shape))
    quick = SteadyMLP(again.net)(held.chunk[:1], torch.full((1, 1, 1), 0.3), held.condition[:1])
    plain = again.net.denoiser()(held.chunk[:1], torch.full((1, 1, 1), 0.3), held.condition[:1])
    torch.testing.assert_close(quick, plain)
    error = (far - held.chunk) * again.normalizer.action_scale[:, None]
    assert float(error.square().mean().sqrt()) < 0.02  # the walk is linear: the network has nothing to add
    policy = Policy(again)
    first = policy.act(observation())
    second = policy.act(observation(1))
    assert second.source == "warm" and np.isfinite(first.action).all()
    np.testing.assert_allclose(policy._senses.latest[0, 5:], first.action, atol=1e-6)


def test_refinement_ends_early_where_evaluations_were_slow_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("domains.robot.watched.time", SimpleNamespace(perf_counter=lambda: clock.now))

    def evaluations(slowest: float) -> int:
        def inner(x: Tensor, _t: Tensor, _y: Tensor | None) -> Tensor:
            clock.now += 0.001
            return x

        inner.process = process("vp-cosine")  # type: ignore[attr-defined]
        pace = Pace()
        for elapsed in (slowest, *[0.001] * 40):
            pace.learn(elapsed)
        wide = torch.full((2, 1), 9.0)
        watched = Watched(inner, -wide, wide, clock.now + 0.02, pace)  # type: ignore[arg-type]
        with pytest.raises(OutOfTime):
            for _ in range(100):
                watched(torch.zeros(1, 2, 4), torch.ones(1, 1, 1))
        return watched.evaluations

    assert evaluations(0.001) in (19, 20) and evaluations(0.004) in (16, 17) and evaluations(5.0) in (10, 11)


def test_a_restart_is_the_business_of_one_item() -> None:
    """One guess of a batch is wrong: the others' chunks are those they would have had without it."""
    sampler, draws = exact("warm")
    good = draws[:3].clone()
    wrong = good.clone()
    wrong[1] += 2.0

    def drawn(guess: Tensor) -> Any:
        return sampler.draw(torch.zeros(3, 1), Noise.of(0, ["a", "b", "c"]), Previous(guess))

    still, moved = drawn(good), drawn(wrong)
    assert still.restarted.tolist() == [False] * 3 and moved.restarted.tolist() == [False, True, False]
    assert still.nfe == 3 and moved.nfe == 12  # the test, two more for those that fit, nine for the one that does not
    torch.testing.assert_close(still.chunk[[0, 2]], moved.chunk[[0, 2]])
    assert float((moved.chunk[1] - MEAN).abs().max()) < 5 * STD
    values = torch.full((3, 2, 6), MEAN)
    constraint = Constraint(values, torch.where(torch.arange(6) < 2, 0.01, torch.inf).expand_as(values))
    args = (torch.zeros(3, 1), Noise.of(0, ["a", "b", "c"]), Previous(wrong), None, None, constraint)
    bound = sampler.draw(*args)
    assert bound.chunk is not None and float((bound.chunk[..., :2] - MEAN).abs().max()) < 0.1
