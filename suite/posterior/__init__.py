"""Posterior methods: a prior and a measurement make estimates of the signal."""

from __future__ import annotations

from suite.posterior.base import PosteriorMethod
from suite.posterior.daps import DAPS
from suite.posterior.ddnm import DDNM, DDNMPlus
from suite.posterior.ddrm import DDRM
from suite.posterior.dds import DDS
from suite.posterior.diffpir import DiffPIR
from suite.posterior.dps import DPS
from suite.posterior.mmps import MMPS
from suite.posterior.pigdm import PiGDM
from suite.posterior.red_diff import REDDiff
from suite.posterior.smc import SMC
from suite.posterior.stsl import STSL
from suite.posterior.unit_steps import UnitSteps

METHODS: dict[str, type[PosteriorMethod]] = {
    method.name: method
    for method in (DAPS, DDNM, DDNMPlus, DDRM, DDS, DiffPIR, DPS, MMPS, PiGDM, REDDiff, SMC, STSL, UnitSteps)
}
"""Every method by the name it has on the command line."""

__all__ = ["METHODS", "PosteriorMethod"]
