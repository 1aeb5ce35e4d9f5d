"""What a run found about its own trustworthiness, as one line with reasons and as fields of its record, for every domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

CHI2_LIMIT = 1.3
DISAGREEMENT_LIMIT = 0.05
SHARE_LIMIT = 0.9


@dataclass(frozen=True)
class Findings:
    """What is known; None where a question has no meaning or was not asked.

    Attributes:
        misfit_chi2: of the result; 1 is what the noise alone explains.
        estimator: "sample", "mean" or "point".
        familiarity: `suite.trust.Familiarity.score`; above 1 the prior does not know such pictures.
        prior_share: mean over the object of `suite.trust.prior_share`.
        disagreement: `suite.doubts.beyond`, the share of the object that lies beyond 3 standard deviations from the reference.
        calibrated: whether the intervals are scaled by held-out data; None: there are none.
        reference: name of the classical method beside the result.
    """

    misfit_chi2: float | None = None
    estimator: str = "point"
    familiarity: float | None = None
    prior_share: float | None = None
    disagreement: float | None = None
    calibrated: bool | None = None
    reference: str = "classical reference"

    @property
    def faults(self) -> list[str]:
        """What somebody should look at, each a few words."""
        said = []
        if self.misfit_chi2 is not None and self.misfit_chi2 > CHI2_LIMIT:
            said.append("the data are not explained")
        if self.familiarity is not None and self.familiarity > 1:
            said.append("the prior does not know such pictures")
        if self.disagreement is not None and self.disagreement > DISAGREEMENT_LIMIT:
            said.append(f"much differs from the {self.reference}")
        if self.prior_share is not None and self.prior_share > SHARE_LIMIT:
            said.append("nearly all detail is the prior's")
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
        """The verdict's line and what it rests on, each a sentence."""
        said = [self.line]
        if self.misfit_chi2 is not None:
            explained = "the data are explained" if self.misfit_chi2 <= CHI2_LIMIT else "the data are not explained"
            said.append(f"Misfit: chi-square {self.misfit_chi2:.2f}, 1 is what the noise alone explains; {explained}.")
        if self.familiarity is not None:
            known = "knows" if self.familiarity <= 1 else "does not know"
            said.append(
                f"Familiarity: score {self.familiarity:.2f}, 1 is the edge of the usual; the prior {known} such pictures."
            )
        if self.prior_share is not None:
            said.append(
                f"Share of the prior: {100 * self.prior_share:.0f} % of fine detail is not measured but the prior's choice."
            )
        if self.disagreement is not None:
            said.append(
                f"Disagreement: {100 * self.disagreement:.1f} % of the object lies more than 3 standard deviations from the "
                f"{self.reference}."
            )
        if self.estimator == "point":
            said.append("No uncertainty: this method is a point estimator.")
        elif self.calibrated is not None:
            held = "scaled by held-out subjects" if self.calibrated else "not calibrated"
            said.append(f"Intervals of 90 %: {held}.")
        return said

    def record(self) -> dict[str, Any]:
        """Fields of `run.json`; those that are None are left out."""
        fields = {
            "familiarity": self.familiarity,
            "prior_share": self.prior_share,
            "disagreement": self.disagreement,
        }
        told = {name: round(value, 4) for name, value in fields.items() if value is not None}
        return told | {"verdict": {"verdict": self.verdict, "line": self.line, "reasons": self.reasons()}}
