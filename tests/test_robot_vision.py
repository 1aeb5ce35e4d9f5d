"""Policies with cameras: pictures from every layout, the encoder, training, the file, and acting."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from domains.robot.containers import Cameras, Demonstrations, Episode
from domains.robot.data import read_demonstrations
from domains.robot.environments import make_environment
from domains.robot.finishing import finish
from domains.robot.metrics import offline_errors
from domains.robot.policy import Policy
from domains.robot.policyconfig import PolicyConfig
from domains.robot.policyfile import PolicyFile, load_policy_file
from domains.robot.running import bench_row, episode, observed
from domains.robot.training import PolicyTrainer
from domains.robot.verbs import self_test_deviation
from domains.robot.vision import ImageEncoder, resized, shaken
from suite.errors import InputError
from tests import robot_cases

DATA = Path(os.environ.get("DIFFSUITE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "robot"
SIZE = 16
VISION = {"cameras": ["eye"], "size": SIZE, "channels": [8, 16], "points": 4, "shift": 1}


def scene(x: float, y: float) -> np.ndarray[Any, Any]:
    """A bright spot at (x, y) in [-1, 1]^2, `(rows, columns, 3)` uint8."""
    side = np.linspace(-1, 1, SIZE)
    spot = np.exp(-((side[None] - x) ** 2 + (side[:, None] - y) ** 2) / 0.1)
    return np.asarray(255 * np.repeat(spot[..., None], 3, axis=2), dtype=np.uint8)


def episodes(count: int = 24, length: int = 12, blank: bool = False) -> tuple[Episode, ...]:
    """The action is the place of the spot, of which the vector says nothing."""
    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        spot = rng.uniform(-0.8, 0.8, (length, 2)).astype(np.float32)
        seen = resized(np.stack([scene(*p) for p in spot]), SIZE, "eye")[:, None]
        out.append(Episode(rng.normal(0, 1, (length, 2)).astype(np.float32), spot, seen * (not blank)))
    return tuple(out)


def made(tmp_path: Path, blank: bool = False, iterations: int = 180) -> tuple[PolicyFile, PolicyTrainer]:
    data = Demonstrations("spots", "npz", episodes(blank=blank), 10.0, ("a", "b"), ("x", "y"))
    network = {"kind": "mlp", "width": 48, "blocks": 1, "features": 8}
    config = robot_cases.config(
        data={"held_out": 4}, vision=VISION, network=network, stream={"share": 0.0}, anchors=0, horizon=2, execute=1,
        iterations=iterations, learning_rate=3e-3, observation_steps=1,
    )  # fmt: skip
    trainer = PolicyTrainer(config, data, tmp_path / "eye.safetensors", torch.device("cpu"))
    trainer.run()
    return finish(trainer), trainer


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> PolicyFile:
    return made(tmp_path_factory.mktemp("eye"))[0]


def test_seeing_beats_a_blank_picture(file: PolicyFile, tmp_path: Path) -> None:
    held = episodes()[3::4]
    config = PolicyConfig(sampler="ddim", steps=1)
    sees = offline_errors(file, held, config)["first_rmse"]
    blind = offline_errors(made(tmp_path, blank=True)[0], [replace(e, pictures=0 * e.pictures) for e in held], config)
    assert sees < 0.6 * blind["first_rmse"]
    assert blind["first_rmse"] == pytest.approx(np.concatenate([e.action for e in held]).std(), rel=0.15)


def test_the_policy_survives_its_file(file: PolicyFile, tmp_path: Path) -> None:
    file.save(tmp_path / "eye.safetensors")
    again = load_policy_file(tmp_path / "eye.safetensors")
    assert self_test_deviation(again) < 1e-3 and again.card.cameras == Cameras(("eye",), SIZE)
    for picture in (scene(0.5, -0.5), scene(-0.5, 0.2)):
        observation = {"observation.state": np.zeros(2), "eye": picture}
        a, b = (Policy(f, PolicyConfig(sampler="ddim")).act(observation).action for f in (file, again))
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_acting_with_pictures(file: PolicyFile) -> None:
    """A missing or damaged picture is a missing observation; LeRobot's layout is the same picture."""
    policy = Policy(file, PolicyConfig(sampler="ddim"))
    here = {"observation.state": np.zeros(2), "observation.images.eye": scene(0.6, -0.4)}
    first = policy.act(here)
    assert first.source == "fresh" and np.isfinite(first.action).all()
    channels_first = np.moveaxis(scene(0.6, -0.4), -1, 0).astype(np.float32) / 255
    same = Policy(file, PolicyConfig(sampler="ddim")).act({**here, "observation.images.eye": channels_first})
    np.testing.assert_allclose(same.action, first.action, atol=1e-5)
    for broken in ({"observation.state": np.zeros(2)}, {**here, "observation.images.eye": channels_first * np.nan}):
        result = policy.act(broken)
        assert result.interventions["missing"] == 1 and np.isfinite(result.action).all()  # type: ignore[index]
    with pytest.raises(InputError, match="sees the cameras eye"):
        policy.act(np.zeros(2))
    with pytest.raises(InputError, match=r"pictures \(rows, columns, 3\)"):
        policy.act({**here, "observation.images.eye": np.zeros((4, 4), np.uint8)})
    chunk = policy.predict_action_chunk({"observation.state": torch.zeros(1, 2), "eye": scene(0.6, -0.4)[None]})
    assert chunk.shape == (1, 2, 2)
    assert bench_row(Policy(file), 5)["calls"] == 5


class Spots:
    """An environment whose observation is a mapping with a picture."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def reset(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"pixels": scene(0.1 * seed, self.shift), "agent": np.zeros(2)}, {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return self.reset(1)[0], 0.0, False, False, {}


def test_an_environment_with_a_camera(file: PolicyFile) -> None:
    environment = make_environment(f"{__name__}:Spots", options={"shift": 0.1})
    row, results = episode(Policy(file), environment, 0, 4)
    assert row["steps"] == 4 and results[0].source == "fresh"
    with pytest.raises(InputError, match="cannot be made with the arguments"):
        make_environment(f"{__name__}:Spots", options={"colour": 1})
    with pytest.raises(InputError, match="the environment shows none"):
        observed(Policy(file), np.zeros(2))


def layouts(folder: Path) -> dict[str, tuple[Path, str]]:
    """The same two episodes of pictures in every layout; returns path and name of the camera."""
    import pyarrow
    import zarr
    from pyarrow import parquet

    pictures = np.random.default_rng(1).integers(0, 255, (10, 12, 12, 3), dtype=np.uint8)
    state, action = np.arange(20, dtype=np.float32).reshape(10, 2), np.ones((10, 2), np.float32)
    np.savez(folder / "a.npz", state=state, action=action, eye=pictures, episode_ends=[4, 10])
    root = zarr.open_group(str(folder / "a.zarr"), mode="w")
    for name, values in (("data/state", state), ("data/action", action), ("data/eye", pictures.astype(np.float32))):
        root.create_array(name, data=values)
    root.create_array("meta/episode_ends", data=np.array([4, 10]))
    with h5py.File(folder / "a.hdf5", "w") as file:
        for i, (a, b) in enumerate(((0, 4), (4, 10))):
            file[f"data/demo_{i}/actions"] = action[a:b]
            file[f"data/demo_{i}/obs/state"] = state[a:b]
            file[f"data/demo_{i}/obs/eye"] = pictures[a:b]
    lerobot = folder / "lerobot"
    (lerobot / "meta/episodes/chunk-000").mkdir(parents=True)
    (lerobot / "data/chunk-000").mkdir(parents=True)
    key = "observation.images.eye"
    features = {
        "observation.state": {"dtype": "float32", "shape": [2]},
        "action": {"dtype": "float32", "shape": [2]},
        key: {"dtype": "image", "shape": [12, 12, 3]},
        "observation.images.film": {"dtype": "video", "shape": [12, 12, 3]},
    }
    (lerobot / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0", "fps": 10, "features": features}))
    cells = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    index = [0] * 4 + [1] * 6
    columns = {"observation.state": state.tolist(), "action": action.tolist(), key: cells, "episode_index": index}
    columns["frame_index"] = [*range(4), *range(6)]
    parquet.write_table(pyarrow.table(columns), lerobot / "data/chunk-000/file-000.parquet")
    listed = pyarrow.table({"episode_index": [0, 1], "length": [4, 6]})
    parquet.write_table(listed, lerobot / "meta/episodes/chunk-000/file-000.parquet")
    names = {name: (folder / f"a.{name}", "eye") for name in ("npz", "zarr", "hdf5")}
    return {**names, "lerobot": (lerobot, key)}


def test_every_layout_gives_the_same_pictures(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    found = {
        name: read_demonstrations(path, cameras=Cameras((camera,), 6))
        for name, (path, camera) in layouts(tmp_path).items()
    }
    for data in found.values():
        shown = data.episodes[1].pictures
        assert shown is not None and shown.shape == (6, 1, 3, 6, 6)
        np.testing.assert_array_equal(shown, found["npz"].episodes[1].pictures)
        assert all("eye" not in note for note in data.notes)
    with pytest.raises(InputError, match="videos are not decoded"):
        read_demonstrations(tmp_path / "lerobot", cameras=Cameras(("observation.images.film",), 6))
    with pytest.raises(InputError, match="no array 'nose' of pictures"):
        read_demonstrations(tmp_path / "a.npz", cameras=Cameras(("nose",), 6))


def test_pictures_are_reduced_by_area() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2, :2] = 200
    small = resized(picture, 2, "here")
    assert small.shape == (3, 2, 2) and (small == np.array([[200, 0], [0, 0]])).all()
    np.testing.assert_array_equal(resized(picture / 255.0, 2, "here"), small)
    for bad in (np.zeros((3, 3)), np.full((3, 4, 4), np.nan), np.full((3, 4, 4), 300.0), np.zeros((4, 4, 3), bool)):
        with pytest.raises(InputError):
            resized(bad, 2, "here")


def test_the_encoder_points_at_what_moves() -> None:
    """Its features are coordinates: inside [-1, 1], and shifted with the picture."""
    torch.manual_seed(0)
    encoder = ImageEncoder(["eye"], SIZE, [8, 16], 4)
    found = encoder(torch.from_numpy(resized(np.stack([scene(-0.5, 0), scene(0.5, 0)]), SIZE, "eye"))[:, None])
    assert found.shape == (2, 8) and bool((found.abs() <= 1).all()) and not torch.equal(found[0], found[1])
    with pytest.raises(InputError, match="image encoder needs"):
        ImageEncoder(["eye"], 4, [8, 16, 16], 4)


def test_shaken_pictures_repeat_their_edge() -> None:
    pictures = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 1, 6, 6).repeat(40, 2, 3, 1, 1)
    moved = shaken(pictures, 2, torch.Generator().manual_seed(0))
    inner = {int(v) for v in moved[:, 0, 0, 2, 2]}
    assert len(inner) > 8 and inner <= {6 * r + c for r in range(5) for c in range(5)}
    assert torch.equal(moved[:, 0, 0], moved[:, 1, 2])


def test_what_does_not_go_with_cameras_is_refused(tmp_path: Path) -> None:
    data = replace(robot_cases.demonstrations(), name="walk")
    with pytest.raises(InputError, match="read without pictures"):
        PolicyTrainer(robot_cases.config(vision=VISION), data, tmp_path / "x.safetensors", torch.device("cpu"))


@pytest.mark.skipif(not (DATA / "pusht_image16.zarr").exists(), reason="no real data")
def test_real_pictures() -> None:
    pytest.importorskip("zarr")
    data = read_demonstrations(DATA / "pusht_image16.zarr", cameras=Cameras(("img",), 24))
    shown = data.episodes[0].pictures
    assert shown is not None and shown.shape[1:] == (1, 3, 24, 24) and shown.mean() > 128  # a scene on white
