"""The pictures a policy is given, and what its image encoder last saw in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.robot.containers import Cameras
from domains.robot.vision import ImageEncoder, Pictures, resized


def pictures_of(features: Mapping[str, Any], cameras: Cameras) -> Pictures | None:
    """`(..., cameras, 3, size, size)` of a mapping; None: no camera is asked for, or one is missing or not finite.

    Raises:
        InputError: what stands there is no picture.
    """
    found = []
    for name in cameras.names:
        key = next(
            (key for key in (f"observation.images.{name}", f"observation.{name}", name) if key in features), None
        )
        if key is None:
            return None
        values = np.asarray(features[key])
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return None
        found.append(resized(values, cameras.size, key))
    return np.stack(found, axis=-4) if found else None


class Eyes:
    """Features of the newest pictures of a batch; no columns for a policy without cameras.

    Attributes:
        features: `(B, features)`; zero before there was a picture.
    """

    def __init__(self, encoder: ImageEncoder | None, batch: int) -> None:
        self.encoder = encoder
        self.features = torch.zeros(batch, 0 if encoder is None else encoder.features)

    def look(self, pictures: Pictures | None, usable: NDArray[np.bool_]) -> None:
        """Take over the pictures of the items that may be acted on."""
        if self.encoder is None or pictures is None or not usable.any():
            return
        wide = pictures if pictures.ndim == 5 else pictures[None]
        self.features[torch.from_numpy(usable)] = self._encoded(torch.from_numpy(wide[usable]))

    @torch.no_grad()
    def _encoded(self, pictures: Tensor) -> Tensor:
        if self.encoder is None:
            raise ValueError("a policy without cameras has no encoder")
        found: Tensor = self.encoder(pictures)
        return found

    def warm_up(self) -> None:
        """A first call is slow."""
        if self.encoder is not None:
            size = self.encoder.size
            blank = torch.zeros(1, len(self.encoder.cameras), 3, size, size, dtype=torch.uint8)
            for _ in range(3):
                self._encoded(blank)
