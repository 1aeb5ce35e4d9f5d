"""What a run found about its own trustworthiness: one line with reasons for a report, and fields for its record.

    findings = Findings(run.misfit_chi2, run.estimator, calibrated=True, doubts=run.warnings)
    run.extra |= findings.record()
    Report(title, findings.verdict, findings.reasons(), ...)

Nothing here knows a field: each fills in what has a meaning for it and leaves the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

DISAGREEMENT_LIMIT = 0.05
SHARE_LIMIT = 0.9


@dataclass(frozen=True)
class Findings:
    """What is known; None where a question has no meaning or was not asked.

    Attributes:
        misfit_chi2: of the result; 1 is what the noise alone explains.
        estimator: "sample", "mean" or "point", as in the run's record; None: it estimates nothing.
        familiarity: `suite.trust.Familiarity.score`; above 1 the data are unlike those the prior was trained on.
        prior_share: mean over the result of `suite.trust.prior_share`.
        disagreement: `suite.doubts.beyond`, the share of the result that lies beyond 3 standard deviations from the reference.
        calibrated: whether the intervals are scaled by held-out data; None: there are none.
        reference: name of the classical method beside the result.
        chi2_range: misfits that are taken as explained; a lower end where too small a misfit is a fault too.
        facts: sentences of the domain's own on what the verdict rests on beside these.
        doubts: sentences of the domain's own, and warnings of the run; any of them asks for a look.
    """

    misfit_chi2: float | None = None
    estimator: str | None = "point"
    familiarity: float | None = None
    prior_share: float | None = None
    disagreement: float | None = None
    calibrated: bool | None = None
    reference: str = "classical reference"
    chi2_range: tuple[float, float] = (0.0, 1.3)
    facts: Sequence[str] = ()
    doubts: Sequence[str] = ()

    @property
    def faults(self) -> list[str]:
        """What somebody should look at, each a few words."""
        said = [] if self._misfit_fault is None else [self._misfit_fault]
        if self.familiarity is not None and self.familiarity > 1:
            said.append("it is unlike what the prior was trained on")
        if self.disagreement is not None and self.disagreement > DISAGREEMENT_LIMIT:
            said.append(f"much differs from the {self.reference}")
        if self.prior_share is not None and self.prior_share > SHARE_LIMIT:
            said.append("nearly all detail is the prior's")
        if self.doubts:
            said.append("see the notes below")
        return said

    @property
    def verdict(self) -> Literal["pass", "check"]:
        return "check" if self.faults else "pass"

    @property
    def line(self) -> str:
        """One sentence for a report's head."""
        if self.faults:
            return "Look at this result before it is used: " + "; ".join(self.faults) + "."
        return "Nothing found speaks against this result."

    def reasons(self) -> list[str]:
        """The verdict's line, what it rests on and the doubts, each a sentence."""
        said = [self.line]
        if self.misfit_chi2 is not None:
            explained = self._misfit_fault or "the data are explained"
            said.append(f"Misfit: chi-square {self.misfit_chi2:.2f}, 1 is what the noise alone explains; {explained}.")
        if self.familiarity is not None:
            known = "does not know" if self.familiarity > 1 else "knows"
            said.append(
                f"Familiarity: score {self.familiarity:.2f}, 1 is the edge of the usual; the prior {known} such data."
            )
        if self.prior_share is not None:
            said.append(
                f"Share of the prior: {100 * self.prior_share:.0f} % of fine detail is not measured but the prior's choice."
            )
        if self.disagreement is not None:
            said.append(
                f"Disagreement: {100 * self.disagreement:.1f} % of the result lies more than 3 standard deviations from the "
                f"{self.reference}."
            )
        if self.estimator == "point":
            said.append("No uncertainty: this method is a point estimator.")
        elif self.calibrated is not None:
            said.append(f"Intervals of 90 %: {'scaled by held-out data' if self.calibrated else 'not calibrated'}.")
        return [*said, *self.facts, *self.doubts]

    def record(self) -> dict[str, Any]:
        """Fields of `run.json`; those that are None are left out."""
        fields = {
            "familiarity": self.familiarity,
            "prior_share": self.prior_share,
            "disagreement": self.disagreement,
        }
        told = {name: round(value, 4) for name, value in fields.items() if value is not None}
        return told | {"verdict": {"verdict": self.verdict, "line": self.line, "reasons": self.reasons()}}

    @property
    def _misfit_fault(self) -> str | None:
        low, high = self.chi2_range
        if self.misfit_chi2 is None or low <= self.misfit_chi2 <= high:
            return None
        if self.misfit_chi2 < low:
            return "the data are explained better than their noise allows"
        return "the data are not explained"
