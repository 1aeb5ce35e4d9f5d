"""`weather generate` from file to file: blocks of dates and members, in this process or on Dask workers, into one output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from domains.weather.containers import Ensemble
from domains.weather.data import read_ensemble
from domains.weather.denoiser import STEPS
from domains.weather.model import WeatherModel, load_model
from domains.weather.output import open_writer
from domains.weather.pipeline import GenerateConfig, Generator, dates_at_once
from suite.errors import InputError
from suite.progress import progress
from suite.run import Run, resolve_device

Piece = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """What a worker needs to make any block: seeds, model and settings, by name.

    Attributes:
        path, model: of the files; model None for the method raw.
        config: `GenerateConfig` as JSON.
    """

    path: str
    model: str | None
    config: str

    def open(self, clock: Callable[[str], AbstractContextManager[Any]] = lambda _: nullcontext()) -> Generator:
        """The generator of members.

        Raises:
            InputError: see `read_ensemble`, `load_model` and `Generator`.
        """
        config = GenerateConfig.model_validate_json(self.config)
        model = None if self.model is None else load_model(self.model)
        return Generator(model, read_ensemble(self.path, config.key), config, resolve_device(config.device), clock)


@dataclass(frozen=True)
class Workers:
    """Where blocks are computed: `engine` local is this process; None workers: one for each core."""

    engine: str = "local"
    count: int | None = None
    scheduler: str | None = None

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            InputError: see there.
        """
        if self.engine == "local" and (self.count is not None or self.scheduler is not None):
            raise InputError("--workers and --scheduler need --engine dask")
        if self.scheduler is not None and self.count is not None:
            raise InputError("--workers does not go with --scheduler: the cluster has its own workers")


def blocks_of(seeds: Ensemble, chosen: range, batch: int) -> list[tuple[range, range]]:
    """(dates, indices into the chosen members), dates outermost."""
    dates = dates_at_once(seeds, min(batch, len(chosen)))
    rows = [range(i, min(i + dates, len(seeds.time))) for i in range(0, len(seeds.time), dates)]
    members = [range(i, min(i + batch, len(chosen))) for i in range(0, len(chosen), batch)]
    return [(r, m) for r in rows for m in members]


def make_block(maker: Generator, rows: range, numbers: list[int]) -> Piece:
    """Members of some dates in the file's order, with what is to be told of them."""
    values = maker.members(maker.days(rows), numbers)
    told = np.asarray(maker.warnings, dtype=str) if maker.warnings else np.zeros(0, "U1")
    return {"values": maker.seeds.grid.to_file(values), "nfe": np.asarray(maker.evaluations), "warnings": told}


@lru_cache(maxsize=1)
def _opened(source: Source) -> Generator:
    torch.set_num_threads(1)
    return source.open()


def _work(job: tuple[Source, range, list[int]]) -> Piece:
    """On a worker."""
    source, rows, numbers = job
    return make_block(_opened(source), rows, numbers)


def generate_file(
    run: Run, source: Source, maker: Generator, output: Path, chosen: range, total: int, batch: int, workers: Workers, *,
    quiet: bool,
) -> None:  # fmt: skip
    """Write the members `chosen` of `total`; finished blocks of an interrupted run are taken over.

    Args:
        output: temporary name of the file.
        maker: opened from `source`.
    """
    seeds = maker.seeds
    writer = open_writer(output, seeds, chosen, total, attributes(maker))
    blocks = blocks_of(seeds, chosen, batch)
    done = 0
    try:
        with progress("Generating", len(seeds.time) * len(chosen), quiet=quiet) as update:
            for (rows, index), piece in zip(blocks, _pieces(run, source, maker, blocks, chosen, workers), strict=True):
                run.nfe = max(run.nfe, int(piece["nfe"]))
                for sentence in piece["warnings"]:
                    run.warn(str(sentence))
                for date, values in zip(rows, piece["values"], strict=True):
                    writer.write(date, index.start, values)
                done += len(rows) * len(index)
                update(done)
    finally:
        writer.close()


def _pieces(
    run: Run,
    source: Source,
    maker: Generator,
    blocks: Sequence[tuple[range, range]],
    chosen: range,
    workers: Workers,
) -> Iterator[Piece]:
    """The blocks in order: kept ones, those made here, or those that workers make."""
    jobs = [(source, rows, [chosen[i] for i in index]) for rows, index in blocks]
    keys = [f"{rows.start}-{numbers[0]}-{numbers[-1] + 1}" for _, rows, numbers in jobs]
    if workers.engine == "local":
        for key, (_, rows, numbers) in zip(keys, jobs, strict=True):

            def compute(rows: range = rows, numbers: list[int] = numbers) -> Piece:
                return make_block(maker, rows, numbers)

            yield run.piece(key, compute)
        return
    from suite.batch.cluster import DaskEngine

    open_ = [job for key, job in zip(keys, jobs, strict=True) if not (run.pieces() / f"{key}.npz").exists()]
    with contextlib.ExitStack() as stack:
        made: Iterator[Piece] = iter(())
        if open_:
            count = min(len(open_), workers.count or max(1, torch.get_num_threads()))
            engine = stack.enter_context(DaskEngine(count, workers.scheduler))
            made = stack.enter_context(contextlib.closing(engine.map(_work, open_)))
        for key in keys:
            yield run.piece(key, lambda: next(made))


def attributes(maker: Generator) -> dict[str, Any]:
    """History and what else the output file says of the run."""
    from suite import __version__

    config, model = maker.config, maker.model
    steps = f", {config.steps or STEPS} steps" if config.method == "diffusion" else ""
    name = "no model" if model is None else f"model {model.card.name} sha256 {model.sha256[:16]}"
    history = f"diffsuite {__version__} weather generate: {config.method}, {name}, seed {config.seed}, {maker.count} seeds{steps}"
    out: dict[str, Any] = {"history": history, "diffsuite_seeds": maker.count, "diffsuite_method": config.method}
    if maker.warnings:
        out["comment"] = " ".join(maker.warnings)
    return out


def prior_of(model: WeatherModel | None) -> dict[str, Any] | None:
    """How the record names the model."""
    return None if model is None else {"name": model.card.name, "sha256": model.sha256}
