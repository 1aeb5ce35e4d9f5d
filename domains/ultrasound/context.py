"""What the restoration network sees of a cine: the frame, and over a window of frames around it the mean and the minimum.

Haze hardly moves while tissue does, so at a pixel the minimum over time bounds a static haze from above.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHANNELS = 3


def context(frames: Tensor, window: int) -> Tensor:
    """`(T, rows, columns)` to `(T, 3, rows, columns)`: frame, mean and minimum over `window` frames centred at it.

    At the ends of the cine the window is cut off. A window of 1, or a single frame, repeats the frame.
    """
    half = min(window // 2, len(frames) - 1)
    if half < 1:
        return frames[:, None].expand(-1, CHANNELS, -1, -1)
    count = len(frames)
    total = F.pad(frames.double().cumsum(0), (0, 0, 0, 0, 1, 0))
    now = torch.arange(count, device=frames.device)
    first = (now - half).clamp_min(0)
    last = (now + half + 1).clamp_max(count)
    mean = (total[last] - total[first]) / (last - first)[:, None, None]
    padded = F.pad(frames, (0, 0, 0, 0, half, half), value=float("inf"))
    lowest = frames
    for shift in range(2 * half + 1):
        lowest = torch.minimum(lowest, padded[shift : shift + count])
    return torch.stack([frames, mean.to(frames.dtype), lowest], 1)
