"""What the verbs on files do: info, train, evaluate, check."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import click

from domains.robot.arrays import write_npz
from domains.robot.containers import Cameras
from domains.robot.data import describe_data, read_demonstrations, with_commands
from domains.robot.finishing import fingerprint, finish, self_test_chunk
from domains.robot.metrics import check_dimensions, offline_errors
from domains.robot.policyfile import TOLERANCE, PolicyFile, load_policy_file
from domains.robot.running import RunConfig, run_settings
from domains.robot.server import ServeConfig, Server
from domains.robot.settings import RobotTrainingConfig
from domains.robot.training import PolicyTrainer
from suite.config import load_config
from suite.errors import InputError
from suite.progress import progress
from suite.records import emit
from suite.run import resolve_device


def info_verb(path: str, json_to: str | None) -> None:
    """`robot info`: facts on a data set or a policy."""
    place = Path(path)
    if place.suffix == ".safetensors" or not place.exists():
        found = load_policy_file(path)
        facts = {"kind": "policy", "sha256": found.sha256, **found.card.model_dump()}
    else:
        facts = describe_data(place)
    if not emit(facts, json_to):
        for name, value in facts.items():
            click.echo(f"{name:24} {value}")


def demonstrate_verb(given: dict[str, Any]) -> None:
    """`robot demonstrate`: scripted demonstrations of the avoidance task."""
    from domains.robot.tasks.avoidance import demonstrations

    output = fresh_output(given, ".npz", "demonstrations are")
    data = demonstrations(given["episodes"], given["seed"] or 0)
    write_npz(data, output)
    click.echo(f"{output}: {len(data.episodes)} episodes, {data.frames} steps")


def fresh_output(given: dict[str, Any], suffix: str, what: str) -> Path:
    """The file `-o` names.

    Raises:
        InputError: another kind of file, or it exists and shall not be replaced.
    """
    output: Path = given["output"]
    if output.suffix != suffix:
        raise InputError(f"{output}: {what} written as {suffix}; choose such a name for -o")
    if output.exists() and not given["overwrite"]:
        raise InputError(f"{output} already exists; add --overwrite or choose another -o")
    return output


def train_verb(data: Path, given: dict[str, Any]) -> None:
    """`robot train`: demonstrations -> policy file."""
    output = fresh_output(given, ".safetensors", "a policy is")
    minutes = given["minutes"]
    if minutes is not None and not 0 < minutes < 1e6:
        raise InputError(f"--minutes {minutes}: a positive finite number is needed")
    options = {name: given[name] for name in ("seed", "iterations") if given[name] is not None}
    config = load_config(RobotTrainingConfig, given["config"], given["overrides"], options)
    cameras = Cameras(tuple(config.vision.cameras), config.vision.size)
    demonstrations = read_demonstrations(data, tuple(config.data.observation), cameras)
    notes = list(demonstrations.notes)
    if config.data.fps is None and demonstrations.fps is None:
        notes.append("The data do not tell their control rate; 10 Hz is assumed (--set data.fps=HZ).")
    trainer = PolicyTrainer(config, demonstrations, output, resolve_device(given["device"] or "auto"))
    if given["resume"]:
        trainer.resume()
    with progress("Training", config.iterations, quiet=given["quiet"]) as update:
        trainer.run(lambda row: update(row["step"], text=f"validation {row['validation']:.4f}"), minutes)
    policy = finish(trainer, minutes)
    policy.save(output)
    record = {"policy": output, "card": policy.card, "history": trainer.history, "warnings": notes}
    if not emit(record, given["json_to"]) and not given["quiet"]:
        last = trainer.history[-1]
        click.echo(
            f"{output}: {trainer.step} steps in {trainer.seconds:.0f} s, validation loss {last['validation']:.4f}"
        )
        for note in notes:
            click.echo(f"Note: {note}")


def self_test_deviation(policy: PolicyFile) -> float:
    """Largest deviation of the repeated self-test from the stored chunk, in network units."""
    observation, noise, chunk = policy.selftest
    repeated = self_test_chunk(policy, observation, noise)
    difference = policy.normalizer.action(repeated) - policy.normalizer.action(chunk)
    return float(difference.abs().max()) if bool(difference.isfinite().all()) else float("inf")


def check_verb(name: str, json_to: str | None) -> bool:
    """`robot check`: does the policy still give what it gave when it was written?"""
    policy = load_policy_file(name)
    deviation = self_test_deviation(policy)
    good = deviation <= TOLERANCE
    record = {"policy": policy.card.name, "sha256": policy.sha256, "deviation": deviation, "limit": TOLERANCE}
    if not emit({**record, "pass": good}, json_to):
        verdict = "good" if good else "DEVIATES"
        click.echo(f"{policy.card.name}: {verdict}, self-test within {deviation:.2g} of the stored one ({TOLERANCE:g})")
    return good


def evaluate_verb(name: str, data: Path, given: dict[str, Any]) -> None:
    """`robot evaluate`: policy, demonstrations -> offline action error.

    On the data set it was trained on (the same values, in whichever layout) only the held-out episodes count.
    """
    config = run_settings(RunConfig, given)
    policy = load_policy_file(name)
    demonstrations = read_demonstrations(data, tuple(policy.card.data.get("observation", ())), policy.card.cameras)
    if policy.card.commands:
        demonstrations = with_commands(demonstrations, policy.card.position)
    check_dimensions(policy, demonstrations)
    held_out = policy.card.validation_episodes
    same = fingerprint(demonstrations) == policy.card.data.get("fingerprint")
    numbers = held_out if same and held_out else list(range(len(demonstrations.episodes)))
    chosen = [demonstrations.episodes[i] for i in numbers]
    others = [episode for i, episode in enumerate(demonstrations.episodes) if i not in set(numbers)]
    metrics = offline_errors(policy, chosen, config, others if same else ())
    settings = {
        "policy": policy.card.name,
        "sha256": policy.sha256,
        "data": demonstrations.name,
        "episodes": numbers,
        "episodes_are": "held out"
        if same and held_out
        else "all of the data set, training data among them"
        if same
        else "all",
        "sampler": config.sampler,
        "steps": config.steps,
        "seed": config.seed,
    }
    if not emit({"metrics": metrics, "settings": settings}, given["json_to"]):
        for key, value in metrics.items():
            if not isinstance(value, dict):
                click.echo(f"{key:16} {value:10.4f}")
        click.echo(f"episodes: {len(numbers)} ({settings['episodes_are']})")


def serve_verb(name: str, host: str, port: int, given: dict[str, Any]) -> None:
    """`robot serve`: until interrupted or terminated."""
    config = run_settings(ServeConfig, given)
    server = Server(load_policy_file(name), config)

    async def main() -> None:
        task = asyncio.ensure_future(
            server.run(
                host, port, lambda at, number: click.echo(f"{server.file.card.name}: serving on {at} port {number}")
            )
        )
        for kind in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(kind, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    click.echo(f"{server.file.card.name}: stopped after {server.counters['calls']} calls")
