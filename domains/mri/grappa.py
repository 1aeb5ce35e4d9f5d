"""GRAPPA: missing lines as weighted sums of acquired neighbours of all coils (Griswold et al., MRM 47, 1202, 2002)."""

from __future__ import annotations

import torch
from torch import Tensor

from domains.mri.coils import calibration_box
from suite.errors import InputError

TAPS = 5
"""Neighbours along the fully sampled axis."""


def grappa(data: Tensor, mask: Tensor, regularisation: float = 1e-4) -> Tensor:
    """Full k-space `(S, C, ny, nx)` from whitened data whose lines are missing along one axis.

    Each missing line takes the two nearest acquired lines on either side; the weights of each pattern of distances are
    fitted on the calibration lines. Evenly spaced lines have few patterns. Acquired data stay as they are.

    Args:
        data: k-space, zero where not sampled.
        mask: bool `(S, 1, ny, nx)`, the same for all slices.
        regularisation: of the fit, as a share of the mean eigenvalue.

    Raises:
        InputError: sampling along two axes, no calibration lines, or gaps wider than these.
    """
    if bool((mask != mask[:1]).any()):
        return torch.cat([grappa(d[None], m[None], regularisation) for d, m in zip(data, mask, strict=True)])
    columns, rows = mask[0, 0].any(0), mask[0, 0].any(1)
    if bool((mask[0, 0] != columns).any()):
        if bool((mask[0, 0] != rows[:, None]).any()):
            raise InputError(
                "grappa needs lines that are missing along one axis; for this sampling use sense, wavelet or dds"
            )
        turned = grappa(data.transpose(-1, -2), mask.transpose(-1, -2), regularisation)
        return turned.transpose(-1, -2)
    box = calibration_box(mask[0, 0], max(mask.shape[-2:]))[1]
    calibration = data[..., box]
    acquired = columns.nonzero().flatten().tolist()
    out = data.clone()
    missing: dict[tuple[int, ...], list[int]] = {}
    for line in (~columns).nonzero().flatten().tolist():
        missing.setdefault(_pattern(line, acquired, box.stop - box.start), []).append(line)
    for offsets, lines in missing.items():
        weights = _fit(calibration, offsets, regularisation)
        for line in lines:
            source = _neighbours(data[..., [line + o for o in offsets]])
            out[..., line] = torch.einsum("scn,syn->scy", weights, source)
    return out


def _pattern(line: int, acquired: list[int], width: int) -> tuple[int, ...]:
    """Distances to the nearest acquired lines, two on either side where the calibration region can teach them."""
    below = [a - line for a in acquired if a < line][-2:]
    above = [a - line for a in acquired if a > line][:2]
    for low, high in ((below, above), (below[-1:], above[:1]), (below[-1:], []), ([], above[:1])):
        offsets = (*low, *high)
        if offsets and max(*offsets, 0) - min(*offsets, 0) <= width - 3:
            return offsets
    raise InputError(
        f"grappa: line {line} lies farther from acquired lines than the {width} calibration lines reach; use sense, wavelet "
        "or dds for this sampling"
    )


def _neighbours(lines: Tensor) -> Tensor:
    """Sources of each target, `(S, ny, C * TAPS * lines)`, from `(S, C, ny, lines)`; the fully sampled axis wraps."""
    shifted = torch.stack([lines.roll(tap - TAPS // 2, 2) for tap in range(TAPS)], -1)
    return shifted.permute(0, 2, 1, 3, 4).flatten(2)


def _fit(calibration: Tensor, offsets: tuple[int, ...], regularisation: float) -> Tensor:
    """Weights `(S, C, C * TAPS * lines)` by regularised least squares over the calibration lines."""
    width = calibration.shape[-1]
    targets = range(max(0, -min(offsets)), width - max(0, max(offsets)))
    source = torch.cat([_neighbours(calibration[..., [t + o for o in offsets]]) for t in targets], 1)
    target = torch.cat([calibration[..., t].movedim(1, 2) for t in targets], 1)
    gram = source.mH @ source
    level = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1) * regularisation
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solved = torch.linalg.solve(gram + level[:, None, None] * eye, source.mH @ target)
    return solved.mT
