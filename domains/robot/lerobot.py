"""LeRobotDataset v2.1 and v3.0, read from their parquet files, image columns among them; videos are left out.

v2.1: one parquet file per episode, episode list in `meta/episodes.jsonl`.
v3.0: many episodes per parquet file, episode list in `meta/episodes/**.parquet`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from domains.robot.containers import Cameras, Demonstrations, Episode, matrix, numbered
from domains.robot.vision import Pictures, resized
from suite.errors import InputError
from suite.files import existing, reading

LAYOUTS = {"v2.1": "lerobot-v2.1", "v3.0": "lerobot-v3.0"}
_MEDIA = ("video", "image", "string")


def is_lerobot(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()


def read_lerobot(path: Path, keys: tuple[str, ...] = (), cameras: Cameras | None = None) -> Demonstrations:
    """A LeRobotDataset folder.

    Args:
        keys: observation features, in order; default every numeric `observation.*` feature, in the order of the card.

    Raises:
        InputError: another version, damaged, or a feature is missing.
    """
    info = _info(path)
    features: dict[str, Any] = info["features"]
    chosen = keys or tuple(
        key for key, about in features.items() if key.startswith("observation.") and about["dtype"] not in _MEDIA
    )
    if not chosen:
        raise InputError(f"{path}: no numeric observation feature; policies on camera images alone are not supported")
    for key in (*chosen, "action"):
        if key not in features or features[key]["dtype"] in _MEDIA:
            raise InputError(f"{path}: there is no numeric feature {key!r}; the data set has {', '.join(features)}")
    seen = cameras or Cameras()
    for key in seen.names:
        kind = features.get(key, {}).get("dtype")
        if kind != "image":
            hint = "; videos are not decoded here: convert it to image columns" if kind == "video" else ""
            raise InputError(f"{path}: there is no image feature {key!r}{hint} (it has {', '.join(features)})")
    tables = _tables_v21(path, info) if info["codebase_version"] == "v2.1" else _tables_v30(path)
    episodes = []
    for number, table in tables:
        where = f"{path}: episode {number}"
        columns = [matrix(_column(table, key, where), where) for key in (*chosen, "action")]
        pictures = (
            None if not seen.names else np.stack([_images(path, table, k, seen.size, where) for k in seen.names], 1)
        )
        episodes.append(Episode(np.concatenate(columns[:-1], axis=1), columns[-1], pictures))
    media = [key for key, about in features.items() if about["dtype"] in _MEDIA and key not in seen.names]
    first = episodes[0]
    names = tuple(name for key in chosen for name in _names(features, key))
    return Demonstrations(
        path.name,
        LAYOUTS[info["codebase_version"]],
        tuple(episodes),
        float(info["fps"]),
        names if len(names) == first.observation.shape[1] else numbered("observation", first.observation.shape[1]),
        tuple(_names(features, "action")),
        (f"Not read: {', '.join(media)}.",) if media else (),
    )


def _info(path: Path) -> dict[str, Any]:
    file = path / "meta" / "info.json"
    with reading(file, "the data set's card cannot be read"):
        info = json.loads(existing(file).read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
        fps = float(info["fps"])
        checked = all("dtype" in about and "shape" in about for about in features.values())
    if version not in LAYOUTS:
        raise InputError(f"{file}: LeRobotDataset {version} is not supported; convert it to v2.1 or v3.0")
    if not checked or not fps > 0:
        raise InputError(f"{file}: every feature needs dtype and shape, and fps must be positive")
    return dict(info)


def _names(features: dict[str, Any], key: str) -> list[str]:
    """Names of a feature's dimensions; cards nest them in lists or mappings, or leave them out."""
    count = int(np.prod(features[key]["shape"]))
    names = features[key].get("names")
    while isinstance(names, dict) or (isinstance(names, list) and len(names) == 1 and isinstance(names[0], list)):
        names = next(iter(names.values()), None) if isinstance(names, dict) else names[0]
    short = key.removeprefix("observation.")
    if isinstance(names, list) and len(names) == count:
        return [f"{short}.{name}" for name in names]
    return list(numbered(short, count))


def _column(table: Any, key: str, where: str) -> Any:
    if key not in table.column_names:
        raise InputError(f"{where}: the parquet file has no column {key!r}; it has {', '.join(table.column_names)}")
    values = table.column(key).combine_chunks()
    while hasattr(values, "flatten") and values.type.num_fields:  # lists of lists of numbers
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)


def _images(folder: Path, table: Any, key: str, size: int, where: str) -> Pictures:
    """An image column `{bytes, path}` of encoded pictures, `(T, 3, size, size)`."""
    from PIL import Image

    if key not in table.column_names:
        raise InputError(f"{where}: the parquet file has no column {key!r}; it has {', '.join(table.column_names)}")
    out = []
    for cell in table.column(key).to_pylist():
        with reading(folder, f"a picture of {key} cannot be decoded"):
            data = cell["bytes"] if cell["bytes"] is not None else _inside(folder, cell["path"]).read_bytes()
            picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        out.append(resized(picture, size, where))
    return np.stack(out)


def _tables_v21(path: Path, info: dict[str, Any]) -> list[tuple[int, Any]]:
    from pyarrow import parquet

    file = path / "meta" / "episodes.jsonl"
    with reading(file, "the list of episodes cannot be read"):
        rows = [json.loads(line) for line in existing(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        listed = [(int(row["episode_index"]), int(row["length"])) for row in rows]
    tables = []
    for number, length in listed:
        with reading(file, "info.json has no usable data_path"):
            name = info["data_path"].format(
                episode_chunk=number // int(info.get("chunks_size", 1000)), episode_index=number
            )
        data = _inside(path, name)
        with reading(data, "the parquet file cannot be read"):
            table = parquet.read_table(existing(data))
        if table.num_rows != length:
            raise InputError(f"{data}: holds {table.num_rows} steps, and {file.name} says {length}")
        tables.append((number, table))
    return tables


def _tables_v30(path: Path) -> list[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    files = sorted((path / "data").rglob("*.parquet"))
    if not files:
        raise InputError(f"{path}: there is no parquet file under data/")
    parts = []
    for file in files:
        with reading(file, "the parquet file cannot be read"):
            parts.append(parquet.read_table(existing(file)))
    with reading(path, "the parquet files do not fit together"):
        whole = pyarrow.concat_tables(parts).sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
        index = whole.column("episode_index").to_numpy()
    lengths = _lengths_v30(path)
    numbers, starts, counts = np.unique(index, return_index=True, return_counts=True)
    found = {int(n): int(c) for n, c in zip(numbers, counts, strict=True)}
    if lengths and found != lengths:
        wrong = next(n for n in sorted(set(found) | set(lengths)) if found.get(n) != lengths.get(n))
        raise InputError(
            f"{path}: episode {wrong} has {found.get(wrong, 0)} steps, meta/episodes says {lengths.get(wrong)}"
        )
    rows = zip(numbers, starts, counts, strict=True)
    return [(int(n), whole.slice(int(start), int(count))) for n, start, count in rows]


def _lengths_v30(path: Path) -> dict[int, int]:
    from pyarrow import parquet

    lengths: dict[int, int] = {}
    for file in sorted((path / "meta" / "episodes").rglob("*.parquet")):
        with reading(file, "the list of episodes cannot be read"):
            table = parquet.read_table(existing(file), columns=["episode_index", "length"])
            columns = (table.column(name).to_pylist() for name in ("episode_index", "length"))
            lengths |= {int(n): int(length) for n, length in zip(*columns, strict=True)}
    return lengths


def _inside(folder: Path, name: str) -> Path:
    """A file named by the card, which must not lead out of the data set."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: meta/info.json names the file {name}, which lies outside the data set")
    return file
