"""The methods of `speech enhance`: each is a plan for one and the same network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from domains.speech.config import EnhanceConfig
from suite.errors import InputError
from suite.grid import time_grid
from suite.process import ouve, sb_ve
from suite.restoration import Plan
from suite.solver import DDIM, DPMpp2M, PredictorCorrector

QUIET = 0.002
"""Noise of the bridge that restores: less than the 0.4 it is trained with, for the same network serves every level. Chosen on
mixtures of the validation speakers: the less noise, the better."""


STRONG = 4.0
"""Pull of the process that starts from y: at the authors' 1.5 its start still holds 22 % of what should be speech and is noise, and
the network, which knows y, takes the agreement of the two for speech. Chosen on the validation speakers."""


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: on the command line.
        steps: network evaluations it takes when not told otherwise.
        plan: of at most so many evaluations (posterior mode has its own, see `domains.speech.informed`).
        samples: its result is a draw (else a point estimate).
    """

    name: str
    steps: int
    plan: Callable[[int], Plan]
    samples: bool = True


def _predict(steps: int) -> Plan:
    return Plan()


def _bridge(steps: int) -> Plan:
    process = sb_ve(c=QUIET)
    return Plan(process, DDIM(), time_grid(process, steps, "quadratic"))


def _storm(steps: int) -> Plan:
    if steps < 2:
        raise InputError(
            "storm takes at least 2 evaluations, one to predict and one to regenerate; use predict for one"
        )
    process = ouve(sigma_min=0.05, sigma_max=0.5)
    return Plan(process, DPMpp2M(), time_grid(process, steps - 1, "logsnr", log_snr_range=(-5.0, 3.0)), two_stage=True)


def _sgmse(steps: int) -> Plan:
    process, solver = ouve(gamma=STRONG, sigma_min=0.05, sigma_max=0.5), PredictorCorrector(snr=0.1)
    grid = time_grid(process, solver.steps_for(steps), "logsnr", log_snr_range=(-5.0, 3.0))
    return Plan(process, solver, grid)


METHODS = {
    method.name: method
    for method in (
        Method("bridge", 2, _bridge),
        Method("predict", 1, _predict, samples=False),
        Method("storm", 8, _storm),
        Method("sgmse", 30, _sgmse),
        Method("posterior", 30, _predict, samples=False),
    )
}
"""bridge: Jukic et al. 2024. storm: Lemercier et al. 2023. sgmse: Richter et al. 2023, predictor-corrector."""


BLIND_STEPS = 6
"""Of the posterior method where the room is not known: it starts near its end, and more steps only smooth."""


def steps_of(method: Method, config: EnhanceConfig) -> int:
    """Network evaluations of a run: as many as asked for, or what the method takes."""
    return config.steps or (BLIND_STEPS if config.blind_reverb else method.steps)


GUIDANCE = {"rir": "both", "bandwidth": "both", "gaps": "stft", "clip": "stft", "blind-reverb": "dds"}
"""Pulls towards the data where none is asked for, by what is known; chosen on the validation speakers (docs/speech.md)."""


def guidance_of(config: EnhanceConfig) -> str:
    """How the posterior method is pulled towards the data: as asked for, or what serves the degradation best."""
    return config.guidance or GUIDANCE[config.informed[0]]
