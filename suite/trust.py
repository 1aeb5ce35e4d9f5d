"""How far a result may be trusted: intervals and their calibration, the prior's share, and whether the prior knows such pictures.

Nothing here knows a field or a file; domains ask these questions of their own measurements, priors and validation data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from suite.doubts import MAD
from suite.errors import InputError
from suite.layout import NUMBERS, layout
from suite.linalg import conjugate_gradient
from suite.measurement import Measurement
from suite.noise import Noise, generator
from suite.prior import Prior

LEVELS = (0.02, 0.06, 0.2)
"""Noise levels, in network units, at which a prior is asked what it thinks of a picture."""


def interval_factor(samples: int, level: float = 0.9) -> float:
    """Half-width of the interval that holds a new draw, over the standard deviation of `samples` draws: Student's t.

    Raises:
        InputError: fewer than two samples, or a level outside (0, 1).
    """
    if samples < 2 or not 0 < level < 1:
        raise InputError(f"an interval needs two samples and a level between 0 and 1, not {samples} and {level}")
    return float(stats.t.ppf((1 + level) / 2, samples - 1)) * math.sqrt(1 + 1 / samples)


def coverage(mean: Tensor, std: Tensor, truth: Tensor, samples: int, level: float = 0.9, scale: float = 1.0) -> float:
    """Share of the true values within `mean +- scale factor std`; for tensors of one shape, masked by the caller."""
    half = scale * interval_factor(samples, level) * std
    return float(((truth - mean).abs() <= half).double().mean())


def coverage_curve(
    mean: Tensor, std: Tensor, truth: Tensor, samples: int, levels: Sequence[float] = (0.5, 0.68, 0.8, 0.9, 0.95)
) -> dict[float, float]:
    """Coverage by nominal level: the diagonal is calibrated."""
    return {level: coverage(mean, std, truth, samples, level) for level in levels}


def conformal_scale(mean: Tensor, std: Tensor, truth: Tensor, samples: int, level: float = 0.9) -> float:
    """The factor on the intervals at which they hold `level` of these true values (split conformal; Vovk et al. 2005).

    On exchangeable new data the coverage is then `level` to within 1 / (n + 1) for n independent values. Pixels of a picture are
    not independent, so the number of subjects decides how sure that is.
    """
    score = ((truth - mean).abs() / (interval_factor(samples, level) * std).clamp_min(1e-12)).flatten().double()
    rank = min(score.numel(), math.ceil(level * (score.numel() + 1)))
    return float(score.kthvalue(rank).values)


def calibration(mean: Tensor, std: Tensor, truth: Tensor, samples: int, level: float = 0.9) -> dict[str, Any]:
    """What a prior's card tells of its intervals: the conformal scale, the coverage with and without it, and their sharpness."""
    scale = conformal_scale(mean, std, truth, samples, level)
    curves = (coverage_curve(mean, factor * std, truth, samples) for factor in (1.0, scale))
    before, after = ({f"{nominal:g}": round(held, 4) for nominal, held in curve.items()} for curve in curves)
    return {
        "level": level,
        "scale": round(scale, 4),
        "coverage_before": round(coverage(mean, std, truth, samples, level), 4),
        "curve_before": before,
        "curve": after,
        "sharpness": round(float(std.mean()), 4),
    }


def prior_share(measurement: Measurement, like: Tensor, std: float, *, probes: int = 8, seed: int = 0) -> Tensor:
    """How much of each pixel comes from the prior alone: 0 measured, 1 prior; `(B, *domain)`.

        share_j = [ (std^2 A^H W^H W A + 1)^-1 ]_jj

    the posterior over the prior variance of pixel j for details that are white with standard deviation `std`: what the data cannot
    tell about a detail of that size. By random signs (Hutchinson; Bekas, Kokiopoulou and Saad 2007), averaged over 5 x 5 pixels
    where the domain has two dimensions: within some 0.5 / sqrt(probes) of a pixel's, 0.1 / sqrt(probes) where it varies slowly.

    Args:
        measurement: with a linear operator.
        like: a tensor of the domain's shape and batch.
        std: size of the details in question, in the domain's units.
    """
    total = torch.zeros_like(like.real if like.is_complex() else like)
    shift = torch.full_like(total[:1].flatten()[:1], 1 / std**2)
    normal = measurement.whitened_normal
    noise = Noise.of(seed, [f"share {i}" for i in range(len(like))])
    for _ in range(probes):
        sign = noise.normal(like).real.sign().to(like.dtype)
        preconditioner = None if measurement.preconditioner is None else measurement.preconditioner(shift.reshape(()))
        solved = conjugate_gradient(
            lambda z: normal(z) + z / std**2,
            sign / std**2,
            iterations=50,
            tolerance=1e-3,
            preconditioner=preconditioner,
        )
        total += (sign.conj() * solved).real if like.is_complex() else sign * solved
    share = total / probes
    if share.ndim == 4:
        share = F.avg_pool2d(share, 5, stride=1, padding=2, count_include_pad=False)
    return share.clamp(0, 1)


@dataclass(frozen=True)
class Familiarity:
    """What a prior's network makes of the pictures it was trained on, to tell others from them.

    A picture is described in three respects: the logarithm of its denoising error at `LEVELS`; its layout (`suite.layout`), which
    a network that was trained on turned and mirrored patches does not see; and mean and root mean square of the network's
    deepest features over the object. Each has its distance, that of Mahalanobis under a covariance shrunk to the diagonal (Ledoit
    and Wolf 2004; for deep features Lee et al. 2018), told as a multiple of what is usual for other subjects, so that 1 is
    the edge.

    Attributes:
        mean, scale: of each number, `(D,)`; of the layout median and median absolute deviation.
        basis, power: principal directions `(K, D)` and variances `(K,)` of the features over scale.
        centers, precision: of the layout over scale, the median of each training subject `(S, L)` and the inverse covariance within
            subjects `(L, L)`; the distance is that from the nearest subject.
        limits: of the distances by error, layout and features: the 95th percentile of a subject's pictures, its median over
            subjects that were not trained on, times what makes 1 that percentile of the score.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor
    power: Tensor
    centers: Tensor
    precision: Tensor
    limits: Tensor

    shrinkage, layout_floor = 0.7, 0.05
    errors, deep = len(LEVELS), len(LEVELS) + NUMBERS

    @classmethod
    def fit(
        cls,
        known: Tensor,
        held_out: Tensor,
        subjects: Sequence[str] | None = None,
        known_subjects: Sequence[str] | None = None,
    ) -> Familiarity:
        """From the descriptions `(n, D)` of training pictures and of pictures of other subjects.

        Args:
            subjects, known_subjects: whom each held-out picture and each training picture shows (default: all one). One strange
                subject then does not move the limits.
        """
        if len(known) < 8 or len(held_out) < 4:
            raise InputError(
                f"familiarity needs at least 8 pictures trained on and 4 others, not {len(known)} and {len(held_out)}"
            )
        mean, scale = known.mean(0), known.std(0)
        plan = slice(cls.errors, cls.deep)
        mean[plan], scale[plan] = known[:, plan].quantile(0.5, dim=0), _usual_size(known[:, plan])
        scale = scale.clamp_min(1e-6)
        u = (known - mean) / scale
        _, s, v = torch.linalg.svd(u[:, cls.deep :], full_matrices=False)
        centers, precision = _layouts(_by_name(u[:, plan].double(), known_subjects), cls.layout_floor)
        kept = cls(mean, scale, v, s**2 / len(known), centers.float(), precision.float(), torch.ones(3))
        distances = _by_name(kept.distances(held_out), subjects)
        limits = torch.stack([torch.quantile(d, 0.95, dim=0) for d in distances]).quantile(0.5, dim=0).clamp_min(1e-6)
        joint = torch.stack([torch.quantile(_together(d / limits), 0.95) for d in distances]).quantile(0.5)
        return replace(kept, limits=limits * joint)

    def distances(self, described: Tensor) -> Tensor:
        """`(n, 3)`: by denoising error, by layout and by features."""
        u = (described - self.mean) / self.scale
        by_error, plan, deep = u[:, : self.errors].square().mean(1), u[:, self.errors : self.deep], u[:, self.deep :]
        away = plan[:, None] - self.centers
        by_layout = ((away @ self.precision) * away).sum(2).amin(1)
        c = deep @ self.basis.T
        rest = (deep.square().sum(1) - c.square().sum(1)).clamp_min(0)
        lam = self.shrinkage
        by_feature = (c.square() / ((1 - lam) * self.power + lam)).sum(1) + rest / lam
        return torch.stack([by_error, by_layout, by_feature], 1)

    def score(self, described: Tensor) -> Tensor:
        """How strange each picture is, `(n,)`: above 1 is stranger than 95 % of another subject's pictures."""
        return _together(self.distances(described) / self.limits).sqrt()

    @classmethod
    def of(cls, prior: Prior) -> Familiarity | None:
        """That of a prior; None where its file holds none of this kind."""
        found = [prior.statistics.get(f"familiarity.{field.name}") for field in fields(cls)]
        return None if any(tensor is None for tensor in found) else cls(*found)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """As `Prior.statistics` holds them."""
        return {f"familiarity.{field.name}": getattr(self, field.name) for field in fields(self)}


def _layouts(plans: Sequence[Tensor], floor: float) -> tuple[Tensor, Tensor]:
    """The middle of each subject `(S, L)` and the inverse covariance within subjects `(L, L)`.

    Medians, and deviations cut at 3 of their usual size: one odd picture would widen what counts as usual for all.
    """
    centers = torch.stack([plan.quantile(0.5, dim=0) for plan in plans])
    within = torch.cat([plan - center for plan, center in zip(plans, centers, strict=True)])
    bound = 3 * _usual_size(within, 0.0) + 1e-3
    within = within.clamp(-bound, bound)
    covariance = within.T @ within / len(within) + floor * torch.eye(within.shape[1], dtype=within.dtype)
    return centers, torch.linalg.inv(covariance)


def _usual_size(rows: Tensor, center: float | None = None) -> Tensor:
    """Of each column, from the median absolute deviation, so that normal numbers have their standard deviation."""
    away = rows - (rows.quantile(0.5, dim=0) if center is None else center)
    return MAD * away.abs().quantile(0.5, dim=0)


def _together(ratios: Tensor) -> Tensor:
    """The three respects as one: what is far out in one of them counts most (root mean square of squared distances)."""
    return ratios.square().mean(1).sqrt()


def _by_name(rows: Tensor, names: Sequence[str] | None) -> list[Tensor]:
    """The rows of each name."""
    if names is None:
        return [rows]
    return [rows[[other == name for other in names]] for name in sorted(set(names))]


@torch.no_grad()
def describe(prior: Prior, pictures: Tensor, objects: Tensor) -> Tensor:
    """The numbers of `Familiarity`, `(B, D)`.

    Args:
        prior: with a U-Net of this suite.
        pictures: `(B, C, *spatial)` in network units; the layout is told of two dimensions only.
        objects: bool `(B, 1, *spatial)`, where there is something; air around it says nothing.
    """
    deepest = _deepest(prior)
    seen: list[Tensor] = []
    handle = deepest.register_forward_hook(lambda module, given, out: seen.append(out.float()))
    denoiser = prior.denoiser(precision="auto")
    weight = objects.to(pictures.dtype)
    axes = tuple(range(2, pictures.ndim))
    size = weight.sum(axes).clamp_min(1.0)
    errors, features = [], []
    try:
        for number, level in enumerate(LEVELS):
            white = torch.randn(pictures.shape[1:], generator=generator(number, "familiarity")).to(pictures.device)
            t = prior.process.time_of_log_snr(torch.full((1,) * pictures.ndim, -math.log(level), dtype=torch.float64))
            seen.clear()
            alpha = prior.process.alpha(t).to(pictures)
            mean = denoiser(alpha * (pictures + level * white), t.to(pictures.device))
            error = ((mean - pictures).square().mean(1, keepdim=True) * weight).sum(axes) / size
            errors.append((error + 1e-8).log())
            deep = torch.cat(seen)
            coarse = (
                F.adaptive_avg_pool2d(weight, (deep.shape[2], deep.shape[3]))
                if deep.ndim == 4
                else torch.ones_like(deep[:, :1])
            )
            total = coarse.sum(axes).clamp_min(1e-3)
            features += [(deep * coarse).sum(axes) / total, ((deep.square() * coarse).sum(axes) / total).sqrt()]
    finally:
        handle.remove()
    plan = layout(pictures, objects) if pictures.ndim == 4 else weight.new_zeros(len(weight), NUMBERS)
    return torch.cat([*errors, plan, *features], 1)


def _deepest(prior: Prior) -> nn.Module:
    levels = getattr(getattr(prior.net, "network", None), "down", None)
    if not isinstance(levels, nn.ModuleList):
        raise InputError(
            f"the prior {prior.card.name} has another architecture; only this suite's U-Net shows its features"
        )
    block: nn.Module = levels[-1][-1]  # type: ignore[index]
    return block
