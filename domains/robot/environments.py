"""Environments by name: a gymnasium id, `module:id`, or `module:Class` with gymnasium's `reset` and `step`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from domains.robot.guard import Vector
from suite.errors import InputError


def make_environment(name: str, pictures: bool = False, options: Mapping[str, Any] | None = None) -> Any:
    """The environment of that name, made with these options; with `pictures` it can be rendered.

    Raises:
        InputError: gymnasium is needed and missing, or there is no such environment.
    """
    module, colon, rest = name.partition(":")
    if colon:
        found = getattr(_import(module, name), rest, None)
        if isinstance(found, type):
            return _built(found, name, options or {})
    else:
        rest, module = name, name.rpartition("/")[0]
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise InputError(f"{name}: a gymnasium id needs gymnasium; pip install 'diffsuite[sim]'") from None
    if module and rest not in gymnasium.registry:
        _import(module, name)  # registers its environments
    try:
        return gymnasium.make(rest, render_mode="rgb_array" if pictures or options else None, **(options or {}))
    except (gymnasium.error.Error, TypeError) as error:
        raise InputError(f"{name}: {str(error).splitlines()[0]}") from error


def _import(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{name}: the module {module} cannot be imported ({error})") from error


def _built(kind: type, name: str, options: Mapping[str, Any]) -> Any:
    missing = [method for method in ("reset", "step") if not callable(getattr(kind, method, None))]
    if missing:
        raise InputError(f"{name}: an environment needs the method {missing[0]}, as gymnasium's have it")
    try:
        return kind(**options)
    except TypeError as error:
        raise InputError(f"{name}: the class cannot be made with the arguments {dict(options)} ({error})") from error


def action_box(environment: Any) -> tuple[ArrayLike, ArrayLike] | None:
    """`(low, high)` of its action space; None where it has no box."""
    space = getattr(environment, "action_space", None)
    if space is None or not hasattr(space, "low") or not hasattr(space, "high"):
        return None
    return np.asarray(space.low, dtype=np.float64), np.asarray(space.high, dtype=np.float64)


def flat(observation: Any) -> Vector:
    """An observation as one vector; the vectors of a mapping in its own order."""
    parts = list(observation.values()) if isinstance(observation, Mapping) else [observation]
    return np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1) for part in parts])


def reset(environment: Any, seed: int) -> Any:
    """The first observation of the episode with this seed."""
    found = environment.reset(seed=seed)
    return found[0] if isinstance(found, tuple) else found
