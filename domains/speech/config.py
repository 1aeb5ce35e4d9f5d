"""Settings of `speech enhance`, and what it tells about a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from suite.config import MainConfig


class EnhanceConfig(MainConfig):
    """Settings of `speech enhance`.

    Attributes:
        method: None: bridge.
        centre: what several draws are reduced to: their mean (least squared error, but smoother than speech), or their medoid, the
            draw nearest to the others, which is speech as the network draws it.
        block: seconds restored at a time.
        overlap: seconds on either side of a block that are computed with it, at most; null: all that its result depends on.
        precision: of the network.
        wiener: also write the classical reference.
        removed: also write what was taken out, the recording minus the result.
        rir, bandwidth, gaps, clip: what happened to the recording, one of them (posterior mode): a room response, a band limit in
            Hz, lost stretches (a table), the level it was clipped at (full scale is 1).
        blind_reverb: the recording was made in an unknown room, which is estimated too (posterior mode).
        noise_db: noise relative to the recording's root mean square (posterior mode); null: estimated.
        guidance: towards the data (posterior mode): dds, a proximal step on the samples; stft, normalised steps down the residual
            in the compressed transform; both, in this order; null: what serves the degradation best.
        iterations: conjugate gradients of each step of dds (posterior mode).
    """

    centre: Literal["mean", "medoid"] = "mean"
    block: float = Field(default=10.0, gt=0)
    overlap: float | None = Field(default=6.0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    wiener: bool = True
    removed: bool = False
    rir: Path | None = None
    bandwidth: float | None = None
    gaps: Path | None = None
    clip: float | None = None
    blind_reverb: bool = False
    noise_db: float | None = None
    guidance: Literal["dds", "stft", "both"] | None = None
    iterations: int = Field(default=20, ge=1)

    @property
    def informed(self) -> list[str]:
        """Which degradations are known, as on the command line."""
        names = ("rir", "bandwidth", "gaps", "clip")
        return [name for name in names if getattr(self, name) is not None] + ["blind-reverb"] * self.blind_reverb


@dataclass(frozen=True)
class Enhanced:
    """What is told about a finished file.

    Attributes:
        metrics: numbers.
        notes: sentences about what was done.
        doubts: sentences about what may be wrong, for which somebody should look.
    """

    metrics: dict[str, float | None]
    notes: list[str]
    doubts: list[str]
