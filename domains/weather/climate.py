"""Climatology: from physical values to standardised anomalies and back, season by season, dry days included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]
SCORES = torch.linspace(-3.2, 3.2, 65)  # normal scores at which the quantiles of a rain-like variable are stored
NEVER = 1e-4  # a smaller share of zeros counts as none
MOST_HARMONICS = 2
FOLDS = 5


def season_of(times: NDArray[np.datetime64]) -> Tensor:
    """Sine and cosine of the day of the year, `(..., 2)`."""
    year = times.astype("datetime64[Y]")
    days = (times - year) / np.timedelta64(1, "D")
    angle = torch.from_numpy(np.asarray(2 * np.pi * days / 365.25, np.float64))
    return torch.stack([angle.sin(), angle.cos()], -1).float()


def harmonics(times: NDArray[np.datetime64], count: int) -> Tensor:
    """`(N, 1 + 2 count)`: 1 and the sines and cosines of the year."""
    first = season_of(times.ravel()).double()
    angle = torch.atan2(first[:, 0], first[:, 1])
    columns = [torch.ones_like(angle)]
    for k in range(1, count + 1):
        columns += [(k * angle).sin(), (k * angle).cos()]
    return torch.stack(columns, 1)


@dataclass(frozen=True)
class Climatology:
    """Of one kind of target (members, or the truth).

    Attributes:
        mean: harmonics of the latent mean `(S, P, C, H, W)`.
        variance: harmonics of the latent variance `(S, Q, C, H, W)`.
        quantiles: `(C', 65, H, W)` of the channels in `rain`, at `SCORES`.
        dry: share of zeros `(C', H, W)` of the channels in `rain`.
        rain: channels with an atom at zero, mapped to normal scores of their own distribution point by point.
        mask: `(C, H, W)`, 1 where the field exists.
    """

    mean: Tensor
    variance: Tensor
    quantiles: Tensor
    dry: Tensor
    rain: tuple[int, ...]
    mask: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("mean", "variance", "quantiles", "dry", "mask")}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], rain: tuple[int, ...]) -> Climatology:
        mean, variance, quantiles, dry, mask = (tensors[n] for n in ("mean", "variance", "quantiles", "dry", "mask"))
        return cls(mean, variance, quantiles, dry, rain, mask)

    @property
    def seasonal(self) -> bool:
        return self.mean.shape[1] > 1

    # --- physical <-> latent ---

    def latent(self, values: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """`(..., C, H, W)` physical to latent; dry points at their mean score, or drawn below it when `rng` is given."""
        out = values.clone()
        for index, channel in enumerate(self.rain):
            out[..., channel, :, :] = _to_scores(
                values[..., channel, :, :], self.quantiles[index], self.dry[index], rng
            )
        return out

    def physical(self, latent: Tensor) -> Tensor:
        """Inverse of `latent`; never negative where the variable has an atom at zero."""
        out = latent.clone()
        for index, channel in enumerate(self.rain):
            out[..., channel, :, :] = _from_scores(latent[..., channel, :, :], self.quantiles[index], self.dry[index])
        return out

    def is_dry(self, values: Tensor) -> Tensor:
        """Where a rain-like variable is zero, bool of the shape of `values` `(..., C, H, W)`."""
        out = torch.zeros(values.shape, dtype=torch.bool)
        for index, channel in enumerate(self.rain):
            out[..., channel, :, :] = values[..., channel, :, :] <= _zero(self.quantiles[index])
        return out

    def thresholds(self, valid: NDArray[np.datetime64], step: int) -> Tensor:
        """Standardised anomalies `(N, C, H, W)` up to which it is dry; -inf where it never is."""
        mean, deviation = self.moments(valid, step)
        out = torch.full(mean.shape, -torch.inf)
        for index, channel in enumerate(self.rain):
            out[:, channel] = (_threshold(self.dry[index]) - mean[:, channel]) / deviation[:, channel]
        return out

    # --- latent <-> standardised anomaly ---

    def moments(self, valid: NDArray[np.datetime64], step: int) -> tuple[Tensor, Tensor]:
        """Latent mean and standard deviation `(N, C, H, W)` at valid times `(N,)` of one lead."""
        mean = torch.einsum("np,pchw->nchw", harmonics(valid, (self.mean.shape[1] - 1) // 2).float(), self.mean[step])
        columns = harmonics(valid, (self.variance.shape[1] - 1) // 2).float()
        variance = torch.einsum("np,pchw->nchw", columns, self.variance[step])
        return mean, torch.maximum(variance, 0.1 * self.variance[step, 0]).clamp_min(1e-12).sqrt()

    def standardise(
        self, values: Tensor, valid: NDArray[np.datetime64], step: int, rng: torch.Generator | None = None
    ) -> Tensor:
        """Physical `(N, ..., C, H, W)` at valid times `(N,)` to anomalies; masked points become 0, NaN elsewhere stays."""
        mean, deviation = self.moments(valid, step)
        extra = (1,) * (values.ndim - 4)
        shape = (len(valid), *extra, *mean.shape[1:])
        out = (self.latent(values, rng) - mean.reshape(shape)) / deviation.reshape(shape)
        return torch.where(self.mask > 0, out, torch.zeros(()))

    def restore(self, anomaly: Tensor, valid: NDArray[np.datetime64], step: int) -> Tensor:
        """Inverse of `standardise`; masked points become NaN."""
        mean, deviation = self.moments(valid, step)
        shape = (len(valid), *(1,) * (anomaly.ndim - 4), *mean.shape[1:])
        out = self.physical(anomaly * deviation.reshape(shape) + mean.reshape(shape))
        return torch.where(self.mask > 0, out, torch.nan)


def _zero(quantiles: Tensor) -> Tensor:
    """The value that still counts as dry, a scalar."""
    return 1e-4 * quantiles[-1].nan_to_num().max()


def _threshold(dry: Tensor) -> Tensor:
    """Normal score of the dry share `(H, W)`."""
    return torch.special.ndtri(dry.clamp(NEVER, 1 - NEVER))


def _to_scores(values: Tensor, quantiles: Tensor, share: Tensor, rng: torch.Generator | None) -> Tensor:
    table = quantiles.flatten(1).T.contiguous()  # (points, 65)
    flat = values.flatten(-2).movedim(-1, 0).contiguous()
    points = flat.reshape(len(table), -1).contiguous()
    upper = torch.searchsorted(table, points, right=True).clamp(1, len(SCORES) - 1)
    low, high = table.gather(1, upper - 1), table.gather(1, upper)
    part = (points - low) / (high - low).clamp_min(1e-12)
    score = SCORES[upper - 1] + part.clamp(0, 3) * (SCORES[1] - SCORES[0])
    at = _threshold(share).reshape(-1, 1)
    probability = torch.special.ndtr(at)
    if rng is None:
        dry = -torch.exp(-(at**2) / 2) / (2 * torch.pi) ** 0.5 / probability
        dry = dry.expand_as(points)
    else:
        uniform = torch.rand(points.shape, generator=rng).clamp(1e-4, 1 - 1e-4)
        dry = torch.special.ndtri(probability * uniform)
    out = torch.where(points <= _zero(quantiles), dry, torch.maximum(score, at))
    out = torch.where(points.isnan(), points, out)
    return out.reshape(flat.shape).movedim(0, -1).reshape(values.shape)


def _from_scores(scores: Tensor, quantiles: Tensor, share: Tensor) -> Tensor:
    """Linear between the stored quantiles and, with the last slope, beyond them; zero up to the threshold."""
    table = quantiles.flatten(1).T.contiguous()
    flat = scores.flatten(-2).movedim(-1, 0).contiguous()
    points = flat.reshape(len(table), -1)
    gap = SCORES[1] - SCORES[0]
    lower = ((points - SCORES[0]) / gap).floor().clamp(0, len(SCORES) - 2).long()
    low, high = table.gather(1, lower), table.gather(1, lower + 1)
    value = low + (high - low) * ((points - SCORES[0]) / gap - lower).clamp(-1, 8)
    dry = points <= _threshold(share).reshape(-1, 1)
    value = torch.where(dry, torch.zeros(()), value.clamp_min(0))
    return value.reshape(flat.shape).movedim(0, -1).reshape(scores.shape)


# --- estimation -------------------------------------------------------------------------------------------------------


def is_rain(values: Array) -> bool:
    """Never negative, and exactly zero (to 1e-4 of its 99.5 % quantile) at one value in fifty or more."""
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() < 0:
        return False
    high = float(np.quantile(finite[:: max(1, finite.size // 200000)], 0.995))
    return high > 0 and float((finite <= 1e-4 * high).mean()) > 0.02


def fit_climatology(
    values: Array, valid: NDArray[np.datetime64], rain: tuple[int, ...], mask: Tensor, *, pooled: bool = False
) -> Climatology:
    """The climatology of fields.

    Args:
        values: `(D, S, M, C, H, W)` physical; NaN outside the mask.
        valid: valid times `(D, S)`.
        rain: channels with an atom at zero.
        mask: `(C, H, W)`.
        pooled: a homogeneous ring: one climatology for all its points.
    """
    data = torch.from_numpy(np.nan_to_num(values))
    shape = (data.shape[3], data.shape[4], data.shape[5])
    levels = torch.special.ndtr(SCORES.double())
    quantiles, dry = torch.zeros(len(rain), len(SCORES), *shape[1:]), torch.zeros(len(rain), *shape[1:])
    for index, channel in enumerate(rain):
        flat = data[:, :, :, channel].reshape(-1, shape[1] * shape[2]).double()
        table = np.quantile(flat.numpy(), levels.numpy(), axis=0)
        quantiles[index] = torch.from_numpy(table).float().reshape(len(SCORES), *shape[1:])
        dry[index] = (data[:, :, :, channel] <= _zero(quantiles[index])).float().mean((0, 1, 2))
    empty = Climatology(torch.zeros(1, 1, *shape), torch.ones(1, 1, *shape), quantiles, dry, rain, mask)
    latent = empty.latent(data, torch.Generator().manual_seed(0))
    means, variances = [], []
    order = max(_order(latent[:, s].mean(1).flatten(1), valid[:, s]) for s in range(latent.shape[1]))
    for s in range(latent.shape[1]):
        mean, variance = _fit_lead(latent[:, s], valid[:, s], order)
        means.append(mean)
        variances.append(variance)
    mean, variance = torch.stack(means), torch.stack(variances)
    if pooled:
        mean, variance = (x.mean(-1, keepdim=True).expand_as(x).contiguous() for x in (mean, variance))
    return Climatology(mean.float(), variance.float(), quantiles, dry, rain, mask)


def _fit_lead(latent: Tensor, valid: NDArray[np.datetime64], order: int) -> tuple[Tensor, Tensor]:
    """Harmonics of mean and variance, `(P, C, H, W)` and `(Q, C, H, W)`, of `(D, M, C, H, W)`."""
    columns = harmonics(valid, order)
    centre = latent.double().mean(1).flatten(1)
    coefficients = torch.linalg.lstsq(columns, centre).solution
    mean = (columns @ coefficients).reshape(len(latent), 1, *latent.shape[2:])
    squares = (latent.double() - mean).square().mean(1).flatten(1)
    spread = torch.linalg.lstsq(harmonics(valid, min(order, 1)), squares).solution
    spread[0] = squares.mean(0).clamp_min(1e-10) if order == 0 else spread[0].clamp_min(1e-10)
    return coefficients.reshape(-1, *latent.shape[2:]), spread.reshape(-1, *latent.shape[2:])


def _order(centre: Tensor, valid: NDArray[np.datetime64]) -> int:
    """Number of harmonics that predicts best the dates left out, fold by fold of consecutive dates."""
    count = len(centre)
    if count < 40:
        return 0
    errors = []
    for order in range(MOST_HARMONICS + 1):
        columns, total = harmonics(valid, order), 0.0
        for fold in np.array_split(np.arange(count), FOLDS):
            rest = np.setdiff1d(np.arange(count), fold)
            x, y = columns[rest], centre[rest].double()
            normal = x.T @ x + 1e-6 * len(rest) * torch.eye(x.shape[1], dtype=x.dtype)
            fit = torch.linalg.solve(normal, x.T @ y)
            total += float((centre[fold].double() - columns[fold] @ fit).square().sum())
        errors.append(total)
    best = int(np.argmin(errors))
    return best if errors[best] < 0.995 * errors[0] else 0


def is_homogeneous(values: Array, periodic: bool) -> bool:
    """Whether a periodic ring looks the same at every point: mean and deviation vary by less than a tenth."""
    if not periodic or values.shape[-2] != 1 or np.isnan(values).any():
        return False
    mean, deviation = values.mean((0, 1, 2), dtype=np.float64), values.std((0, 1, 2), dtype=np.float64)
    level = deviation.mean(-1, keepdims=True)
    return bool(
        (np.ptp(mean, axis=-1, keepdims=True) < 0.3 * level).all()
        and (np.ptp(deviation, axis=-1, keepdims=True) < 0.2 * level).all()
    )
