"""From a trained network to a policy file: calibration of the residual test, anchors, self-test and card."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from domains.robot.calibration import calibrate
from domains.robot.containers import Demonstrations, Episode
from domains.robot.policyfile import SELFTEST_STEPS, PolicyCard, PolicyFile
from domains.robot.training import PolicyTrainer
from domains.robot.windows import windows
from suite.noise import Noise, generator

RATIOS = torch.logspace(math.log10(0.05), math.log10(5.0), 12)
"""Noise ratios sigma/alpha at which the residual test is calibrated."""


def finish(trainer: PolicyTrainer, minutes: float | None = None) -> PolicyFile:
    """The policy of a trainer's averaged network, its weights rounded to half precision as they are stored."""
    net = trainer.average.cpu().half().float().eval().requires_grad_(False)
    held = trainer.validation
    calibration = calibrate(net, held.chunk, trainer.conditions(net), RATIOS, Noise.of(0, ["calibration"]))
    blank = (torch.zeros(0), torch.zeros(0), torch.zeros(0))
    file = PolicyFile(net, trainer.normalizer, calibration, blank, _card(trainer, minutes), anchors(trainer))
    noise = torch.randn(1, trainer.data.action_dim, net.horizon, generator=generator(0, "selftest"))
    observation, pictures = _example(trainer)
    file = replace(file, pictures=pictures)
    return replace(file, selftest=(observation, noise, self_test_chunk(file, observation, noise)))


def anchors(trainer: PolicyTrainer) -> Tensor | None:
    """Centres `(K, A, H)` of clusters of the training chunks, relative to where the robot is where that is known."""
    count, position = trainer.config.anchors, trainer.config.data.position
    if not count:
        return None
    chunks = torch.cat(
        [_relative(e, trainer, position) for e in (trainer.data.episodes[i] for i in trainer.train_numbers)]
    )
    flat = chunks[:: max(1, len(chunks) // 20000)].flatten(1).double().numpy()
    centres, _ = kmeans2(flat, min(count, len(flat)), minit="++", rng=np.random.default_rng(trainer.config.seed))
    return torch.as_tensor(centres, dtype=torch.float32).unflatten(1, chunks.shape[1:])


def _relative(episode: Episode, trainer: PolicyTrainer, position: list[int] | None) -> Tensor:
    chunk = windows([episode], trainer.normalizer, 1, trainer.config.horizon).chunk
    if position is None:
        return chunk
    return chunk - trainer.normalizer.action(torch.from_numpy(episode.observation[:, position]))[..., None]


def _example(trainer: PolicyTrainer) -> tuple[Tensor, Tensor | None]:
    """The first observations of the last episode, `(1, T, O)`, and the newest pictures."""
    steps = trainer.config.observation_steps
    observation = torch.tensor(trainer.data.episodes[-1].observation)
    newest = min(steps, len(observation)) - 1
    shown = trainer.data.episodes[-1].pictures
    pictures = None if shown is None else torch.tensor(shown[newest : newest + 1])
    return observation[torch.arange(steps).clamp_max(len(observation) - 1)][None].clone(), pictures


def _card(trainer: PolicyTrainer, minutes: float | None) -> PolicyCard:
    config, data = trainer.config, trainer.data
    return PolicyCard(
        name=config.name or trainer.output.stem,
        description=config.description,
        observation=list(data.observation_names),
        action=list(data.action_names),
        position=config.data.position,
        commands=config.data.commands,
        linear=config.linear,
        fps=trainer.fps,
        horizon=config.horizon,
        execute=config.execute,
        observation_steps=config.observation_steps,
        stride=config.stream.stride if config.stream.share else None,
        normalisation=config.data.normalisation,
        architecture=config.network.kind,
        network=trainer.settings,
        vision=config.vision.settings(),
        process=config.process,
        head=config.head,
        sigma_data=trainer.sigma_data,
        sigma_range=(config.noise.low, config.noise.high),
        data=_data(trainer),
        validation_episodes=trainer.held_out,
        licence=config.licence,
        training={
            "iterations": trainer.step,
            "seconds": round(trainer.seconds),
            "minutes": minutes,
            "batch": config.batch,
            "seed": config.seed,
            "stream_share": config.stream.share,
            "parameters": sum(p.numel() for p in trainer.net.parameters()),
        },
        validation={
            "loss": round(trainer.history[-1]["validation"], 5),
            "on": "held-out episodes, every noise level",
        },
        limits=config.limits,
    )


def _data(trainer: PolicyTrainer) -> dict[str, Any]:
    config, data = trainer.config, trainer.data
    return {
        "name": data.name,
        "layout": data.layout,
        "fingerprint": fingerprint(data),
        "observation": config.data.observation,
        "episodes": len(data.episodes),
        "frames": data.frames,
        "mirrored": config.data.symmetry is not None,
    }


def self_test_chunk(file: PolicyFile, observation: Tensor, noise: Tensor) -> Tensor:
    """What `robot check` repeats: DDIM in `SELFTEST_STEPS` steps from the given noise, `(1, H, A)` in physical units."""
    condition = file.net.condition(file.normalizer.observation(observation).flatten(1), file.pictures)
    chunk = file.sampler("ddim", SELFTEST_STEPS).from_noise(condition, noise)
    return file.normalizer.physical_action(chunk.transpose(1, 2)).contiguous()


def fingerprint(data: Demonstrations) -> str:
    """SHA-256 of the episodes' values, the same in whichever layout they are stored."""
    digest = hashlib.sha256()
    for episode in data.episodes:
        digest.update(episode.observation.tobytes())
        digest.update(episode.action.tobytes())
        digest.update(b"" if episode.pictures is None else episode.pictures.tobytes())
    return digest.hexdigest()
