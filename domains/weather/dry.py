"""Dry points as Gaussian values below their threshold, drawn given the points around them.

A field of rain is taken for a Gaussian field censored at the threshold that leaves the dry share (Stidd 1973). Where it is dry
the value is not known. Drawn for each point alone it would be white noise, and so would be the generated fields; drawn in turn
given the neighbours (Gibbs sampling, the regression estimated anew from the draws: data augmentation, Tanner and Wong 1987) it
continues the field.
"""

from __future__ import annotations

import torch
from torch import Tensor

RADIUS = 2
SWEEPS = 8
SMALLEST = 1e-12


def continue_below(
    fields: Tensor, dry: Tensor, threshold: Tensor, train: int, rng: torch.Generator, *, periodic: bool
) -> Tensor:
    """Fields with their dry values drawn given the neighbours; the distribution at each point stays as it was.

    Args:
        fields: standardised `(D, M, C, H, W)`, the dry values drawn independently.
        dry: of the same shape, bool.
        threshold: `(D, C, H, W)`: a dry value lies below.
        train: regressions are estimated on the first so many dates.
        periodic: the longitudes close.
    """
    members = fields.shape[1]
    x = fields.flatten(0, 1).double()
    hidden, limit = dry.flatten(0, 1), threshold.double().repeat_interleave(members, 0)
    rows = slice(0, train * members)
    shape = fields.shape[2:]
    places = [(c, i, j) for c in range(shape[0]) for i in range(shape[1]) for j in range(shape[2])]
    places = [p for p in places if bool(hidden[(slice(None), *p)].any())]
    for _ in range(SWEEPS):
        for place in places:
            here = (slice(None), *place)
            around = torch.stack([x[(slice(None), *q)] for q in _neighbours(place, shape, periodic)], 1)
            mean, deviation = _regression(around, x[here], rows)
            which = hidden[here]
            x[here][which] = _below(mean[which], deviation, limit[here][which], rng)
    for place in places:
        here = (slice(None), *place)
        which = hidden[here]
        x[here][which] = _spread_evenly(x[here][which], limit[here][which])
    return x.float().unflatten(0, fields.shape[:2])


def _neighbours(place: tuple[int, int, int], shape: torch.Size, periodic: bool) -> list[tuple[int, int, int]]:
    """The points of the same field at most `RADIUS` rows and columns away, and the other fields of the point."""
    c, i, j = place
    out = {(other, i, j) for other in range(shape[0])}
    for row in range(max(0, i - RADIUS), min(shape[1], i + RADIUS + 1)):
        for column in range(j - RADIUS, j + RADIUS + 1):
            if periodic or 0 <= column < shape[2]:
                out.add((c, row, column % shape[2]))
    return sorted(out - {place})


def _regression(x: Tensor, y: Tensor, rows: slice) -> tuple[Tensor, float]:
    """Prediction of `y` `(R,)` from `x` `(R, k)` for all rows and its error, the least squares on `rows`."""
    a = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)
    normal = a[rows].T @ a[rows]
    normal = normal + 1e-6 * len(a[rows]) * torch.eye(len(normal), dtype=x.dtype)
    mean = a @ torch.linalg.solve(normal, a[rows].T @ y[rows])
    return mean, float((y[rows] - mean[rows]).square().mean().sqrt().clamp_min(1e-6))


def _below(mean: Tensor, deviation: float, limit: Tensor, rng: torch.Generator) -> Tensor:
    """A normal draw that lies below the limit."""
    share = torch.special.ndtr((limit - mean) / deviation).clamp_min(SMALLEST)
    uniform = torch.rand(mean.shape, generator=rng, dtype=mean.dtype).clamp_min(SMALLEST)
    return torch.minimum(mean + deviation * torch.special.ndtri((share * uniform).clamp_min(1e-300)), limit)


def _spread_evenly(values: Tensor, limit: Tensor) -> Tensor:
    """The draws of a point in their order, with the standard normal's distribution below the limit."""
    share = torch.special.ndtr(limit).clamp_min(SMALLEST)
    order = (torch.special.ndtr(values) / share).argsort().argsort()
    return torch.special.ndtri(share * (order + 0.5) / len(values))
