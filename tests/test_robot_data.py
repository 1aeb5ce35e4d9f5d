"""Readers of demonstrations, each against the arrays that were written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from domains.robot.containers import Demonstrations
from domains.robot.data import describe_data, read_demonstrations
from domains.robot.normalizer import Normalizer
from domains.robot.windows import windows
from suite.errors import InputError
from tests.robot_cases import episodes, write_npz

DATA = Path(os.environ.get("DIFFSUITE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "robot"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no real robot data here (set DIFFSUITE_DATA)")


def same(found: Demonstrations) -> None:
    wanted = episodes()
    assert len(found.episodes) == len(wanted)
    for a, b in zip(found.episodes, wanted, strict=True):
        np.testing.assert_array_equal(a.observation, b.observation)
        np.testing.assert_array_equal(a.action, b.action)


def lerobot(folder: Path, version: str) -> Path:
    """The demonstrations as a LeRobotDataset, written with pyarrow alone."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    found = episodes()
    tables = []
    for number, episode in enumerate(found):
        columns = {
            "observation.state": list(episode.observation),
            "action": list(episode.action),
            "episode_index": np.full(len(episode), number),
            "frame_index": np.arange(len(episode)),
        }
        tables.append(pa.table(columns))
    features = {
        "observation.state": {"dtype": "float32", "shape": [5], "names": None},
        "observation.image": {"dtype": "video", "shape": [3, 8, 8], "names": None},
        "action": {"dtype": "float32", "shape": [3], "names": {"motors": ["a", "b", "c"]}},
    }
    info = {"codebase_version": version, "fps": 20, "chunks_size": 1000, "features": features}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (folder / "meta" / "episodes").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    if version == "v2.1":
        rows = [json.dumps({"episode_index": i, "length": len(e)}) for i, e in enumerate(found)]
        (folder / "meta" / "episodes.jsonl").write_text("\n".join(rows))
        for i, table in enumerate(tables):
            pq.write_table(table, folder / "data" / "chunk-000" / f"episode_{i:06d}.parquet")
    else:
        listed = pa.table({"episode_index": range(len(found)), "length": [len(e) for e in found]})
        pq.write_table(listed, folder / "meta" / "episodes" / "file-000.parquet")
        pq.write_table(pa.concat_tables(tables[3:]), folder / "data" / "chunk-000" / "file-000.parquet")
        pq.write_table(pa.concat_tables(tables[:3]), folder / "data" / "chunk-000" / "file-001.parquet")
    return folder


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot(tmp_path: Path, version: str) -> None:
    found = read_demonstrations(lerobot(tmp_path / "set", version))
    same(found)
    assert found.fps == 20 and found.action_names == ("action.a", "action.b", "action.c")
    assert found.notes == ("Not read: observation.image.",)


def test_npz(tmp_path: Path) -> None:
    found = read_demonstrations(write_npz(tmp_path / "walk.npz"))
    same(found)
    assert found.fps == 10 and describe_data(tmp_path / "walk.npz")["episodes"] == 6


def test_zarr(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    found = episodes()
    root = zarr.open_group(tmp_path / "buffer.zarr", mode="w", zarr_format=2)
    root.create_array("data/state", data=np.concatenate([e.observation for e in found]))
    root.create_array("data/action", data=np.concatenate([e.action for e in found]))
    root.create_array("meta/episode_ends", data=np.cumsum([len(e) for e in found]))
    same(read_demonstrations(tmp_path / "buffer.zarr"))


def test_robomimic(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        for number, episode in enumerate(episodes(12)):
            group = file.create_group(f"data/demo_{number}")
            group["actions"] = episode.action
            group["obs/a"], group["obs/b"] = episode.observation[:, :2], episode.observation[:, 2:]
            group["obs/image"] = np.zeros((len(episode), 4, 4, 3), np.uint8)
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
    found = read_demonstrations(tmp_path / "demo.hdf5")
    np.testing.assert_array_equal(
        found.episodes[10].observation, episodes(12)[10].observation
    )  # demo_10 is the eleventh
    assert found.fps == 20 and found.notes == ("Not read: image.",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action": np.full((180, 3), np.nan)}, "NaN"),
        ({"episode_ends": np.array([30, 20, 180])}, "rise"),
        ({"episode_ends": np.array([30, 60])}, "stops at 60"),
        ({"action": np.zeros((179, 3))}, "stops at 180"),
        ({"state": np.array(["a"] * 180)}, "numbers"),
    ],
)
def test_bad_values(tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    with np.load(write_npz(tmp_path / "good.npz")) as file:
        arrays = dict(file) | change
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=words):
        read_demonstrations(tmp_path / "bad.npz")


def test_damaged_and_strange(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "walk.npz")
    file.write_bytes(file.read_bytes()[:200])
    strange = tmp_path / "walk.txt"
    strange.write_text("x")
    folder = lerobot(tmp_path / "set", "v2.1")
    (folder / "data" / "chunk-000" / "episode_000002.parquet").write_bytes(b"PAR1 no")
    for path in (file, strange, tmp_path / "absent.npz", folder):
        with pytest.raises(InputError, match=path.name):
            read_demonstrations(path)


def test_a_card_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = lerobot(tmp_path / "set", "v2.1")
    info = json.loads((folder / "meta" / "info.json").read_text())
    (folder / "meta" / "info.json").write_text(json.dumps(info | {"data_path": "../../{episode_index}.parquet"}))
    with pytest.raises(InputError, match="outside"):
        read_demonstrations(folder)


@pytest.mark.parametrize("kind", ["min-max", "z-score"])
def test_normalizer(kind: str) -> None:
    found = episodes()
    stats = Normalizer.fit(found, 10.0, [4], kind)  # type: ignore[arg-type]
    action = torch.tensor(np.concatenate([e.action for e in found]))
    network = stats.action(action)
    torch.testing.assert_close(stats.physical_action(network), action)
    assert bool((network[:, 2] == 0).all())  # the constant
    assert bool((stats.physical_action(torch.full((3,), 5.0))[2] == 7.0).all())
    if kind == "min-max":
        assert float(network[:, :2].max()) == pytest.approx(1) and float(network[:, :2].min()) == pytest.approx(-1)
    else:
        torch.testing.assert_close(network[:, :2].std(0, correction=0), torch.ones(2), rtol=1e-4, atol=1e-4)
    again = Normalizer.of(stats.tensors(), "file")
    assert torch.equal(again.jerk, stats.jerk)
    velocity = max(float(np.abs(np.diff(e.action[:, 0])).max()) for e in found) * 10
    assert float(stats.velocity[0]) == pytest.approx(velocity, rel=1e-4)


def test_an_angle_has_no_jump() -> None:
    stats = Normalizer.fit(episodes(), 10.0, [4], "min-max")
    around = torch.tensor([[0, 0, 0, 0, 3.1415], [0, 0, 0, 0, -3.1415]], dtype=torch.float32)
    a, b = stats.observation(around)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    assert stats.change(around[0].double().numpy(), around[1].double().numpy())[4] < 1e-3


@pytest.mark.parametrize("key", ["normalizer.action_scale", "normalizer.velocity"])
def test_missing_statistics_are_refused(key: str) -> None:
    tensors = Normalizer.fit(episodes(), 10.0, [4], "min-max").tensors()
    del tensors[key]
    with pytest.raises(InputError, match=key):
        Normalizer.of(tensors, "file")


def test_windows() -> None:
    (episode,) = episodes(1)
    stats = Normalizer.fit([episode], 10.0, [], "min-max")
    found = windows([episode], stats, steps=2, horizon=4)
    chunk = stats.physical_action(found.chunk.transpose(1, 2)).numpy()
    np.testing.assert_allclose(chunk[5], episode.action[5:9], atol=1e-5)
    np.testing.assert_allclose(chunk[-1], np.repeat(episode.action[-1:], 4, axis=0), atol=1e-5)
    seen = stats.observation(torch.tensor(episode.observation))
    torch.testing.assert_close(found.condition[5], torch.cat([seen[4], seen[5]]))
    torch.testing.assert_close(found.condition[0], torch.cat([seen[0], seen[0]]))


@real
def test_real_layouts_agree() -> None:
    pytest.importorskip("pyarrow")
    a, b = (read_demonstrations(DATA / name) for name in ("pusht_lowdim_train.npz", "pusht_lerobot_v30"))
    assert a.frames == b.frames == 20382 and b.fps == 10
    for one, other in zip(a.episodes, b.episodes, strict=True):
        np.testing.assert_array_equal(one.observation, other.observation)
        np.testing.assert_array_equal(one.action, other.action)


@real
def test_real_humanoid() -> None:
    pytest.importorskip("pyarrow")
    found = read_demonstrations(DATA / "g1_bottle_lerobot_v21")
    assert (len(found.episodes), found.frames, found.observation_dim, found.fps) == (50, 18203, 26, 30)
    assert found.observation_names[0] == "state.kLeftShoulderPitch"
