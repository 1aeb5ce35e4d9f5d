"""The layout of pictures: what turning, mirroring and rescaling do to its numbers, and that familiarity sees them."""

from __future__ import annotations

from pathlib import Path

import torch
from ct_runs import save_prior

from suite.layout import NUMBERS, layout
from suite.prior import load_prior
from suite.trust import Familiarity, describe

SIDE = 64


def trunks(n: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Ellipses of water, wider than high, with a bright spine at the back and a table below, in network units."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE) - 31.5, torch.arange(SIDE) - 31.5, indexing="ij")
    y, x = y / scale, x / scale
    out = []
    for a, b, c, d in torch.rand(n, 4, generator=g):
        width, height = 22 + 5 * a, 13 + 4 * b
        picture = torch.where((x / width) ** 2 + (y / height) ** 2 < 1, 0.0, -1.0)
        picture = torch.where((x - c) ** 2 + (y - 0.6 * height) ** 2 < (2.5 + d) ** 2, 0.6, picture)
        picture = torch.where((y - height - 5).abs() < 1.1 + 0 * x, -0.2, picture)
        out.append(picture + 0.02 * torch.randn(picture.shape, generator=g))
    return torch.stack(out)[:, None]


def numbers(pictures: torch.Tensor) -> torch.Tensor:
    return layout(pictures, pictures > -0.5)


def test_what_the_numbers_say() -> None:
    upright = numbers(trunks(4, 0))
    assert upright.shape == (4, NUMBERS)
    area, wide, bright_x, bright_y, _, beside_y = upright.T[:6]
    assert bool((area > 6).all() & (wide > 0.2).all() & (bright_y > 0.1).all() & (beside_y > 0).all())
    assert float(bright_x.abs().max()) < 0.2
    turned, down = numbers(torch.rot90(trunks(4, 0), 1, (2, 3))), numbers(trunks(4, 0).flip(2))
    torch.testing.assert_close(turned[:, 1], -wide)
    torch.testing.assert_close(turned[:, 2], bright_y, atol=1e-4, rtol=1e-4)  # what was below is now on the right
    torch.testing.assert_close(turned[:, 6], -upright[:, 6], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(down[:, [3, 5]], -upright[:, [3, 5]], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned[:, 7:], upright[:, 7:], atol=1e-4, rtol=1e-4)
    small = numbers(trunks(4, 0, 0.5))
    torch.testing.assert_close(small[:, 0], area - torch.log(torch.tensor(4.0)), atol=0.08, rtol=0)


def test_an_empty_picture_has_numbers_too() -> None:
    assert numbers(torch.full((1, 1, 20, 20), -1.0)).tolist() == [[0.0] * NUMBERS]


def test_turned_and_rescaled_pictures_are_unfamiliar(tmp_path: Path) -> None:
    prior = load_prior(save_prior(tmp_path / "prior.safetensors"))

    def rows(pictures: torch.Tensor) -> torch.Tensor:
        return describe(prior, pictures, pictures > -0.5)

    subjects = ["one"] * 10 + ["other"] * 10
    known = Familiarity.fit(rows(trunks(40, 0)), rows(trunks(20, 1)), subjects)
    usual = known.score(rows(trunks(20, 2)))
    assert float((usual > 1).float().mean()) < 0.3
    fresh = trunks(10, 3)
    for strange in (torch.rot90(fresh, 1, (2, 3)), fresh.flip(2), trunks(10, 4, 0.5), trunks(10, 5, 1.3)):
        assert float(known.score(rows(strange)).min()) > float(usual.max())


def test_one_strange_subject_does_not_move_the_limits(tmp_path: Path) -> None:
    prior = load_prior(save_prior(tmp_path / "prior.safetensors"))

    def rows(pictures: torch.Tensor) -> torch.Tensor:
        return describe(prior, pictures, pictures > -0.5)

    known, usual, strange = rows(trunks(40, 0)), rows(trunks(20, 1)), rows(torch.rot90(trunks(8, 2), 1, (2, 3)))
    names = ["a"] * 10 + ["b"] * 10
    plain = Familiarity.fit(known, usual, names)
    mixed = Familiarity.fit(known, torch.cat([usual, strange]), [*names, *["c"] * 8])
    pooled = Familiarity.fit(known, torch.cat([usual, strange]))
    assert float(mixed.limits[1]) < 2 * float(plain.limits[1]) < float(pooled.limits[1])
