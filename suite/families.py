"""The published restoration diffusions by name: what their authors train, and how they sample.

Every one is a `Process` with a network head and a setting of the shared solvers; `family: NAME` in a training configuration
gives the first two, `suite.restoration.plan(NAME, evaluations)` the rest. Parameters suit signals in about [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from suite.errors import InputError
from suite.solver import (
    DDIM,
    DPMpp2M,
    Euler,
    PredictorCorrector,
    Solver,
    incremental,
    resfusion_noise,
    residual_noise,
)


@dataclass(frozen=True)
class Family:
    """A restoration diffusion as published.

    Attributes:
        process: key of `suite.process.PROCESSES`.
        head: what the network is trained to say (`suite.network.Head`).
        solver: makes the authors' sampler.
        evaluations: network evaluations they advertise.
        parameters: of the process, where they differ from its defaults.
        loss: norm of the training error.
        grid: kind of time grid.
        log_snr_range: of a grid in log-SNR; a clean end of 3 leaves the last step a noise of 0.05 to take off.
        pinned: share of training examples at the anchored end (bridges).
    """

    process: str
    head: str
    solver: Callable[[], Solver]
    evaluations: int
    parameters: dict[str, float] = field(default_factory=dict)
    loss: str = "l2"
    grid: str = "uniform"
    log_snr_range: tuple[float, float] = (-5.0, 5.0)
    pinned: float = 0.0

    def training(self) -> dict[str, Any]:
        """The fields of a `TrainingConfig` that make a network of this family; times are uniform, as the authors draw them."""
        return {
            "process": self.process,
            "process_parameters": self.parameters,
            "head": self.head,
            "loss": self.loss,
            "noise": {"mean": None, "low": 2e-3, "high": 200.0, "pinned": self.pinned},
        }


_IR_SDE = Family("ir-sde", "eps", lambda: DDIM(1.0), 100, {"lam": 100 / 255}, loss="l1")
_RDDM = Family("rddm", "residual", DDIM, 5, loss="l1")

FAMILIES: dict[str, Family] = {
    "ir-sde": _IR_SDE,
    "mrs": replace(
        _IR_SDE, solver=lambda: DPMpp2M(midpoint=False), evaluations=10, grid="logsnr", log_snr_range=(-5.0, 3.0)
    ),
    "rddm": _RDDM,
    "rddm-two": replace(_RDDM, head="residual+eps", solver=lambda: DDIM(form=incremental)),
    "resshift": Family("resshift", "x0", lambda: DDIM(1.0, residual_noise), 4, {"min_noise": 0.2}),
    "resfusion": Family("resfusion", "resnoise", lambda: DDIM(1.0, resfusion_noise), 5),
    "ouve": Family("ouve", "edm", lambda: PredictorCorrector(0.5, predictor=DDIM(1.0)), 30),
    "sb-ve": Family("sb-ve", "x0", DDIM, 8, pinned=0.1),
    "interpolant": Family("interpolant", "edm", DDIM, 8, pinned=0.1),
    "flow": Family("flow", "edm", Euler, 8),
}
"""Luo et al. 2023 (ir-sde), its fast samplers (mrs: Li et al. 2025), Liu et al. 2024 (rddm, with one head or both), Yue et al. 2023
and 2024 (resshift), Shi et al. 2024 (resfusion), Richter et al. 2023 (ouve), Jukic et al. 2024 (sb-ve), Albergo et al. 2023
(interpolant), Lipman et al. 2023 given the degraded signal as a condition (flow)."""


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        InputError: no such family.
    """
    if name not in FAMILIES:
        raise InputError(f"there is no restoration family named {name!r}; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
