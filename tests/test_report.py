"""The report: one file, well formed, nothing from outside, of bounded size, alive in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.report import MAX_BYTES, MAX_SLICES, Figure, Report, Stack, to_grey, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CT = {"soft": (40.0, 400.0), "lung": (-600.0, 1500.0)}
VOID = {"meta", "img", "input", "br", "hr", "link"}


def phantom(slices: int, size: int = 64) -> np.ndarray:
    """A disc in HU whose brightness tells the slice."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    disc = np.where(x**2 + y**2 < 0.7, 0.0, -1000.0)
    return np.stack([disc + 10 * k for k in range(slices)]).astype(np.float32)


def example(slices: int = 5) -> Report:
    volume = phantom(slices)
    stacks = [
        Stack("recon", volume),
        Stack("reference", volume + 5),
        Stack("std", np.abs(volume) / 100, {"std": (5.0, 10.0)}),
    ]
    return Report(
        title="Reconstruction <script>alert(1)</script> & more",
        verdict="check",
        reasons=["Misfit chi-square is 1.31; 0.8 to 1.2 is expected."],
        facts={"method": "dds", "evaluations": 20, "misfit": 1.3123456, "prior": None},
        metrics=[{"slice": 1, "psnr": 34.56789}, {"slice": 2, "psnr": float("nan")}],
        warnings=["The body leaves the field of view."],
        figures=[Figure("Axial", stacks, CT, caption="HU.", marks=("R", "L", "A", "P"))],
    )


class Page(HTMLParser):
    """Checks that tags nest, and collects attributes, text and scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.data: list[dict] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"] and data.startswith("{"):
            self.data.append(json.loads(data))
        elif self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(example(), path)
    page = Page(path)
    text = path.read_text()
    assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]{2,}/|@import|url\(", text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert "href" not in attributes
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert sum(tag == "script" for tag, _ in page.tags) == 2  # data and code: the title's was not let in


def test_page_says_what_the_report_holds(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(example(), path)
    words = " ".join(" ".join(Page(path).texts).split())
    told = [
        "check",
        "1.31; 0.8 to 1.2",
        "The body leaves",
        "Axial",
        "recon",
        "reference",
        "dds",
        "20",
        "1.312",
        "34.57",
    ]
    told += ["HU.", "soft", "lung", "Slice 3 of 5", "soft, level 40, width 400", "level 5, width 10"]
    for part in told:
        assert part in words, part
    assert "nan" not in words and "None" not in words


def test_pictures_are_the_slices_through_the_windows(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(example(), path)
    page = Page(path)
    (data,) = page.data
    shown = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert data["slices"] == [1, 2, 3, 4, 5] and data["start"] == 2
    lung = next(entry for entry in data["stacks"][0] if entry["window"] == "lung")
    for k, png in enumerate(lung["png"]):
        expected = np.clip((phantom(5)[k] - (-1350)) / 1500, 0, 1) * 255
        assert np.abs(pixels(png).astype(float) - expected).max() <= 0.5 + 1e-3
    assert data["stacks"][0][0]["png"][2] is None
    middle = pixels(str(shown[0]).partition(",")[2])
    assert np.array_equal(middle, to_grey(phantom(5)[2], *CT["soft"]))
    assert data["stacks"][2][0]["window"] == "std" and len(data["stacks"][2]) == 1


def test_grey_levels() -> None:
    values = np.array([-500.0, -160.0, 40.0, 240.0, 900.0, np.nan, np.inf, -np.inf])
    assert to_grey(values, 40, 400).tolist() == [0, 0, 128, 255, 255, 0, 255, 0]
    assert to_grey(np.array([1.0, 2.0]), 1.0, 0.0).tolist() == [0, 255]


def test_long_stacks_are_sampled_evenly_from_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    figure = Figure("x", [Stack("recon", np.zeros((500, 8, 8)))], {"all": (0.0, 1.0)})
    write_report(Report("x", "pass", figures=[figure]), path)
    (data,) = Page(path).data
    assert len(data["slices"]) == MAX_SLICES and (data["slices"][0], data["slices"][-1]) == (1, 500)
    assert set(np.diff(data["slices"])) <= {7, 8}
    assert "of 500; 64 of them are in this page" in path.read_text()


def test_size_is_bounded_and_a_single_image_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.report.MAX_BYTES", MAX_BYTES // 20)
    path = tmp_path / "report.html"
    noise = np.random.default_rng(0).normal(size=(64, 256, 256)).astype(np.float32)
    figures = [Figure("a", [Stack("noise", noise)], {"w": (0.0, 6.0)}), Figure("b", [Stack("one", noise[0])], CT)]
    write_report(Report("x", "pass", figures=figures), path)
    assert path.stat().st_size < 1.1 * MAX_BYTES // 20
    first, second = Page(path).data
    assert 2 < len(first["slices"]) < 64 and second["slices"] == [1]
    assert path.read_text().count('type="range"') == 1


def test_large_pictures_are_reduced_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(Report("x", "fail", figures=[Figure("x", [Stack("a", np.zeros((1500, 1030)))], CT)]), path)
    page = Page(path)
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert pixels(str(image["src"]).partition(",")[2]).shape == (750, 515)
    assert "shown at reduced size" in path.read_text()


def test_stacks_that_do_not_match_are_refused(tmp_path: Path) -> None:
    for stacks in ([np.zeros((2, 4, 4)), np.zeros((3, 4, 4))], [np.zeros(4)], []):
        figure = Figure("x", [Stack("s", volume) for volume in stacks], CT)
        with pytest.raises(ValueError, match="figure 'x'"):
            write_report(Report("x", "pass", figures=[figure]), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_lives_in_a_browser(tmp_path: Path) -> None:
    """Every control is worked by a script; what the page then shows is read from the DOM that Chromium prints."""
    path = tmp_path / "report.html"
    write_report(example(), path)
    probe = """<script>
    addEventListener("error", (event) => { document.title = "error: " + event.message; });
    addEventListener("load", () => {
      document.querySelectorAll("button")[1].click();
      const slider = document.querySelector("input");
      slider.value = 4; slider.dispatchEvent(new Event("input"));
      const images = [...document.images];
      Promise.all(images.map((image) => image.decode())).then(() => {
        const sizes = images.map((image) => image.naturalWidth);
        const texts = [".position", ".window"].map((name) => document.querySelector(name).textContent);
        document.title = JSON.stringify({ sizes, texts, hidden: document.querySelector(".controls").hidden,
          src: images[0].src.split(",")[1] });
      }, (fault) => { document.title = "error: " + fault; });
    });</script>"""
    path.write_text(path.read_text().replace("</body>", probe + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
             "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    command = [str(CHROMIUM), *flags, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert not re.search(r"CONSOLE|Uncaught|Refused to", done.stderr), done.stderr
    titles = re.findall(r"<title>(.*?)</title>", done.stdout)
    found = json.loads(titles[0].replace("&amp;", "&"))
    lung = next(entry for entry in Page(path).data[0]["stacks"][0] if entry["window"] == "lung")
    assert found["sizes"] == [64, 64, 64] and found["hidden"] is False
    assert found["texts"] == ["5", "lung, level -600, width 1500"]
    assert found["src"] == lung["png"][4]
