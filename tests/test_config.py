"""Typed settings: layers, and one sentence for every fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from suite.config import Config, MainConfig, load_config, read_yaml
from suite.errors import InputError


class TV(Config):
    weight: float = pydantic.Field(default=0.1, ge=0)
    iterations: int = 100


class Settings(MainConfig):
    method: str = "dds"
    tv: TV = TV()
    fallback: TV | None = None
    windows: dict[str, tuple[float, float]] = pydantic.Field(default_factory=dict)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\nsamples: 4\ntv: {weight: 0.5, iterations: 7}\nwindows: {soft: [40, 400]}\n")
    return path


def test_later_layers_win_key_by_key(file: Path) -> None:
    settings = load_config(Settings, file, ["tv.weight=1e-3", "samples=5"], {"samples": 6, "device": "cpu"})
    assert (settings.seed, settings.samples, settings.device) == (3, 6, "cpu")
    assert settings.tv == TV(weight=1e-3, iterations=7)
    assert settings.windows == {"soft": (40.0, 400.0)}
    assert load_config(Settings) == Settings()


def test_override_values_are_yaml() -> None:
    words = ["fallback={weight: 2}", "windows.lung=[-600, 1500]", "key=null", "prior=a.safetensors"]
    settings = load_config(Settings, overrides=words)
    assert settings.fallback == TV(weight=2) and settings.windows["lung"] == (-600.0, 1500.0)
    assert settings.key is None and settings.prior == Path("a.safetensors")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("tv.wieght=1", ["unknown key 'tv.wieght'", "--set tv.wieght=1", "'tv.weight'"]),
        ("weight=1", ["unknown key 'weight'", "'tv.weight'"]),
        ("sed=1", ["'seed'"]),
        ("fallback.iteration=1", ["'fallback.iterations'"]),
        ("seed", ["--set key=value"]),
        (".seed=1", ["--set key=value"]),
        ("seed=[1", ["YAML"]),
        ("seed=-1", ["'seed' in --set seed=-1 is wrong", "greater than or equal to 0"]),
        ("samples=many", ["'samples'", "valid integer", "'many'"]),
        ("tv.weight=.nan", ["'tv.weight'", "finite"]),
        ("tv=3", ["'tv'"]),
        ("device=tpu", ["'device'", "'cuda'"]),
        ("windows.soft=[1]", ["'windows.soft"]),
    ],
)
def test_faults_name_the_key_the_source_and_what_would_be_right(word: str, says: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Settings, overrides=[word])
    for part in says:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_key_names_the_file(file: Path) -> None:
    file.write_text("tv:\n  iterations: 7\n  strength: 2\n")
    with pytest.raises(InputError, match=r"unknown key 'tv\.strength' in .*run\.yaml; the nearest valid key is '"):
        load_config(Settings, file)


def test_a_wrong_value_is_blamed_on_the_layer_that_set_it(file: Path) -> None:
    file.write_text("tv: {weight: -1}\n")
    with pytest.raises(InputError, match=r"'tv\.weight' in .*run\.yaml"):
        load_config(Settings, file, ["tv.iterations=3"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"seed: [1\n", "line 2"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- 1\n", "hold a list"),
        (b"just words", "hold a str"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"a: " + b"[" * 5000, "not valid YAML"),
    ],
)
def test_malformed_files(content: bytes, says: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_yaml(file)


def test_an_empty_file_is_no_setting_and_an_absent_one_a_fault(file: Path) -> None:
    file.write_text("# nothing\n")
    assert load_config(Settings, file) == Settings()
    with pytest.raises(InputError, match="cannot read"):
        read_yaml(file.parent)


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["tv", "weight", "seed", "windows", "x"]) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["tv", "seed", "windows", "fallback", "method", "y"]), _values, max_size=4))
def test_any_yaml_gives_settings_or_one_sentence(tmp_path_factory: Any, data: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        settings = load_config(Settings, file)
    except InputError as error:
        assert str(error)
    else:
        assert Settings.model_validate(settings.model_dump()) == settings
