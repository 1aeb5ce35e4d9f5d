"""Typed settings: defaults in a pydantic model, then a YAML file, then `--set`, then the command line's own options."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

from suite.errors import InputError

M = TypeVar("M", bound=pydantic.BaseModel)


class Config(pydantic.BaseModel):
    """Base of every settings model: unknown keys, NaN and infinities are refused, values cannot change later."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class MainConfig(Config):
    """Settings of every main verb; a domain adds its own and narrows `method`.

    Attributes:
        method: name of the method.
        steps: network evaluations per sample at most; None: what the method advertises.
        samples: posterior samples.
        seed: of all random numbers, with each case's identity; 0 counts.
        device: where to compute.
        prior: a prior's file; None: the shipped one.
        key: which array of a file that holds several.
    """

    method: str | None = None
    steps: int | None = pydantic.Field(default=None, ge=1)
    samples: int = pydantic.Field(default=1, ge=1)
    seed: int = pydantic.Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    prior: Path | None = None
    key: str | None = None


def load_config(
    model: type[M],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> M:
    """The settings of a run.

    Args:
        model: the domain's settings, a `Config`.
        file: YAML.
        overrides: `key=value` words; the key may be dotted (`geometry.views`), the value is read as YAML.
        options: values from the command line, by setting.

    Raises:
        InputError: unreadable or malformed file, unknown key (names the nearest valid one), value of the wrong type.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    if file is not None:
        layers.append((str(file), read_yaml(file)))
    layers += [(f"--set {word}", _parse_override(word)) for word in overrides]
    layers.append(("the command line", dict(options or {})))
    merged: dict[str, Any] = {}
    for source, data in layers:
        _check_keys(model, data, source)
        _merge(merged, data)
    try:
        return model.model_validate(merged)
    except pydantic.ValidationError as error:
        raise InputError(_explain(error, layers)) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file (an empty file is an empty mapping).

    Raises:
        InputError: it cannot be read, is no YAML, or holds something else than a mapping.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the settings {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InputError(f"the settings {file} are not valid YAML{where}; expected lines of 'key: value'") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"the settings {file} hold a {type(data).__name__}; expected lines of 'key: value'")
    return {str(key): value for key, value in data.items()}


def _parse_override(word: str) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise InputError(f"'--set {word}' is not of the form --set key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"the value of '--set {word}' is not valid YAML; put it in quotes") from None
    for part in reversed(path):
        value = {part: value}
    return dict(value)


def _merge(into: dict[str, Any], data: Mapping[str, Any]) -> None:
    for key, value in data.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copy(value)


def _copy(value: Any) -> Any:
    return {str(key): _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


# --- unknown keys -----------------------------------------------------------------------------------------------------


def _nested(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The one settings model inside an annotation such as `TV` or `TV | None`; None when there is none or a choice."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    models = [option for option in options if isinstance(option, type) and issubclass(option, pydantic.BaseModel)]
    return models[0] if len(models) == 1 else None


def _keys(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = _nested(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from _keys(inner, f"{prefix}{name}.")


def _check_keys(model: type[pydantic.BaseModel], data: Mapping[str, Any], source: str) -> None:
    def walk(inner: type[pydantic.BaseModel], values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if key not in inner.model_fields:
                raise InputError(f"unknown key '{prefix}{key}' in {source}{_suggest(model, f'{prefix}{key}')}")
            below = _nested(inner.model_fields[key].annotation)
            if below is not None and isinstance(value, Mapping):
                walk(below, value, f"{prefix}{key}.")

    walk(model, data, "")


def _suggest(model: type[pydantic.BaseModel], key: str) -> str:
    """The valid key most like `key`, by its whole dotted name or its last part."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, last)

    nearest = max(_keys(model), key=likeness, default=None)
    return f"; the nearest valid key is '{nearest}'" if nearest else ""


def _explain(error: pydantic.ValidationError, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The first fault as one sentence with the setting, where it came from, and what would be right."""
    fault = error.errors(include_url=False)[0]
    path = [str(part) for part in fault["loc"]]
    source = next((name for name, data in reversed(layers) if _holds(data, path)), "the settings")
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = "" if fault["type"] == "missing" else f", got {str(fault['input'])[:60]!r}"
    return f"'{'.'.join(path) or 'settings'}' in {source} is wrong: {reason[:1].lower()}{reason[1:]}{given}"


def _holds(data: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether a layer set the value at `path`, or something above it that is no mapping."""
    value: Any = data
    for part in path:
        if not isinstance(value, Mapping):
            return True
        if part not in value:
            return False
        value = value[part]
    return bool(path)
