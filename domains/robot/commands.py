"""The verbs of the robot domain. Torch is imported inside them, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from suite.domain import Domain, Part
from suite.options import VerbGroup, common_options

_PATH = click.Path(path_type=Path)


@click.group(cls=VerbGroup)
def robot() -> None:
    """Robot policies: train on demonstrations, act within a deadline and within limits."""


@robot.command()
@click.argument("path", type=str)
@common_options("json_to")
def info(path: str, json_to: str | None) -> None:
    """What is in a data set or a policy."""
    from domains.robot.verbs import info_verb

    info_verb(path, json_to)


@robot.command()
@click.argument("task", type=click.Choice(["avoidance"]))
@click.option("--episodes", type=click.IntRange(min=1), default=2000, show_default=True, metavar="N")
@common_options("output", "seed", "overwrite")
def demonstrate(task: str, **given: Any) -> None:
    """Demonstrations by a scripted expert, as an .npz file."""
    from domains.robot.verbs import demonstrate_verb

    demonstrate_verb(given)


@robot.command()
@click.option("--data", type=_PATH, required=True, metavar="DATASET", help="Demonstrations: LeRobot, zarr, HDF5, npz.")
@click.option("--minutes", type=float, metavar="M", help="Stop after M minutes.")
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="Training steps at most.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint beside the output.")
@common_options("output", "device", "config", "overrides", "seed", "overwrite", "quiet", "json_to")
def train(data: Path, **given: Any) -> None:
    """Train a policy on demonstrations."""
    from domains.robot.verbs import train_verb

    train_verb(data, given)


@robot.command()
@click.argument("policy", type=str)
@click.option("--data", type=_PATH, required=True, metavar="DATASET", help="Demonstrations to compare with.")
@click.option("--sampler", metavar="NAME", help="Default: warm.")
@common_options("steps", "seed", "config", "overrides", "quiet", "json_to")
def evaluate(policy: str, data: Path, **given: Any) -> None:
    """Offline action error against demonstrations."""
    from domains.robot.verbs import evaluate_verb

    evaluate_verb(policy, data, given)


def _control(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The options of the verbs that run a policy against the clock."""
    verb = click.option("--deadline-ms", type=float, metavar="D", help="An action is due after D ms; default: none.")(
        verb
    )
    return click.option("--sampler", metavar="NAME", help="Default: warm.")(verb)


@robot.command()
@click.argument("policy", type=str)
@click.option("--env", required=True, metavar="ENV", help="A gymnasium id, module:id or module:Class.")
@click.option("--episodes", type=click.IntRange(min=1), default=10, show_default=True, metavar="N")
@click.option("--gif", type=_PATH, metavar="FILE", help="Pictures of the first episode.")
@_control
@common_options("steps", "seed", "config", "overrides", "quiet", "json_to")
def rollout(policy: str, env: str, episodes: int, **given: Any) -> None:
    """Run a policy in an environment; episode i is reset with seed N + i."""
    from domains.robot.running import rollout_verb

    rollout_verb(policy, env, episodes, given)


@robot.command()
@click.argument("policy", type=str)
@click.option("--calls", type=click.IntRange(min=1), default=200, show_default=True, metavar="N", help="Per sampler.")
@click.option("--env", metavar="ENV", help="Also run episodes in this environment, and report what they achieve.")
@click.option("--episodes", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="With --env.")
@_control
@common_options("steps", "seed", "config", "overrides", "quiet", "json_to")
def bench(policy: str, calls: int, env: str | None, episodes: int, **given: Any) -> None:
    """Evaluations, latency and deadline misses of each sampler on this machine."""
    from domains.robot.running import bench_verb

    bench_verb(policy, calls, env, episodes, given)


@robot.command()
@click.argument("policy", type=str)
@common_options("json_to")
@click.pass_context
def check(ctx: click.Context, policy: str, json_to: str | None) -> None:
    """Repeat a policy's self-test: 0 good, 1 it deviates, 2 unreadable."""
    from domains.robot.verbs import check_verb

    ctx.exit(0 if check_verb(policy, json_to) else 1)


@robot.command()
@click.argument("policy", type=str)
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Others than loopback need a token."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=5555, show_default=True, metavar="N", help="0: any free one."
)
@_control
@common_options("steps", "seed", "config", "overrides")
def serve(policy: str, host: str, port: int, **given: Any) -> None:
    """Answer robots over TCP until interrupted; see docs/robot.md for the frames."""
    from domains.robot.verbs import serve_verb

    serve_verb(policy, host, port, given)


def demo(output: Path, *, overwrite: bool, quiet: bool) -> Path:
    """Run the shipped policy in a simulated scene whose block does not move, as no robot ships with a dependency."""
    from domains.robot.demonstration import demo_run

    return demo_run(output, overwrite=overwrite, quiet=quiet)


DOMAIN = Domain(
    name="robot",
    help="Diffusion policies for robots: fast, bounded, on time.",
    group=robot,
    demo=demo,
    weights=Path(__file__).parent / "weights",
    optional=(
        Part("pyarrow", "LeRobot data sets", "robot"),
        Part("zarr", "diffusion_policy's zarr data sets", "robot"),
        Part("gymnasium", "rollouts in gymnasium environments", "sim"),
        Part("gym_pusht", "the PushT environment", "sim"),
    ),
)
