"""`speech enhance` on files of every kind, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speech_cases import enhance, noisy_voice, record, tiny_prior, voice, write

from cli import main
from domains.speech.data import open_audio, read_audio


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny.safetensors")


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"),
    [
        ("a.wav", "PCM_16", 16000, 1),
        ("b.wav", "PCM_24", 48000, 2),
        ("c.wav", "FLOAT", 44100, 1),
        ("d.flac", "PCM_16", 8000, 3),
        ("e.ogg", "VORBIS", 22050, 2),
    ],
)
def test_same_kind_out(name: str, subtype: str, rate: int, channels: int, prior: Path, tmp_path: Path) -> None:
    file = write(tmp_path / name, noisy_voice(0.5, rate, channels), rate, subtype)
    before = file.read_bytes()
    enhance(file, "-o", tmp_path / "out", "--prior", prior, "--method", "predict")
    old, new = open_audio(file), open_audio(tmp_path / "out" / name)
    for what in ("rate", "frames", "channels", "container", "subtype"):
        assert getattr(new, what) == getattr(old, what)
    assert file.read_bytes() == before
    assert open_audio(tmp_path / "out" / "reference" / name).frames == old.frames
    (x, _), (y, _) = read_audio(file), read_audio(tmp_path / "out" / name)
    for c in range(channels):  # a gain near one half: the result resembles the recording, channel by channel
        assert np.corrcoef(x[:, c], y[:, c])[0, 1] > 0.9


def test_record_and_seed(prior: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", noisy_voice(0.6))
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        enhance(file, "-o", tmp_path / name, "--prior", prior, "--seed", seed, "--steps", 3)
    one, two, three = (read_audio(tmp_path / name / "a.wav")[0] for name in ("one", "two", "three"))
    assert np.array_equal(one, two) and not np.array_equal(one, three)
    said = record(tmp_path / "one")
    assert (said["method"], said["estimator"], said["nfe"]) == ("bridge", "sample", 3)
    assert said["prior"]["name"] == "tiny" and "a.wav" in said["outputs"] and "reference/a.wav" in said["outputs"]
    assert said["misfit_chi2"] is None and said["inputs"][0]["file"] == "a.wav"


def test_draws_and_their_mean(prior: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", noisy_voice(0.6), subtype="FLOAT")
    enhance(file, "-o", tmp_path / "mean", "--prior", prior, "--samples", 4, "--steps", 2, "--no-report")
    said = record(tmp_path / "mean")
    assert said["estimator"] == "mean" and said["metrics"]["a.wav"]["spread_db"] is not None
    assert not (tmp_path / "mean" / "report.html").exists()
    enhance(file, "-o", tmp_path / "no", "--prior", prior, "--method", "predict", "--samples", 2, code=2)


def test_the_medoid_is_one_of_the_draws(prior: Path, tmp_path: Path) -> None:
    """The draw of least summed distance, over a file of several blocks."""
    file = write(tmp_path / "a.wav", noisy_voice(1.0), subtype="FLOAT")
    common = [file, "--prior", prior, "--method", "sgmse", "--steps", 4, "--set", "block=0.4", "--samples", 3]
    enhance(*common, "-o", tmp_path / "medoid", "--set", "centre=medoid")
    enhance(*common, "-o", tmp_path / "mean")
    said = record(tmp_path / "medoid")
    assert (said["estimator"], record(tmp_path / "mean")["estimator"]) == ("sample", "mean")
    number = said["metrics"]["a.wav"]["chosen_draw"]
    assert number in (0, 1, 2) and "spread_db" in said["metrics"]["a.wav"]
    medoid, mean = (read_audio(tmp_path / name / "a.wav")[0] for name in ("medoid", "mean"))
    assert not np.array_equal(medoid, mean)
    if number == 0:
        enhance(*common[:-1], 1, "-o", tmp_path / "one")
        assert np.array_equal(medoid, read_audio(tmp_path / "one" / "a.wav")[0])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_a_file_cut_short_is_refused(
    name: str, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / name, noisy_voice(2.0))
    whole = file.read_bytes()
    for kept in (len(whole) // 2, 64):
        file.write_bytes(whole[:kept])
        enhance(file, "-o", tmp_path / "out", "--prior", prior, "--method", "predict", code=2)
        assert name in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("promised", [0, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_whole(promised: int, tmp_path: Path) -> None:
    """Writers to a pipe cannot know the length."""
    file = write(tmp_path / "a.wav", noisy_voice(0.5))
    data = bytearray(file.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = promised.to_bytes(4, "little")
    file.write_bytes(data)
    assert len(read_audio(file)[0]) == 8000


def test_a_folder_in_any_order(prior: Path, tmp_path: Path) -> None:
    """Each file's result is its own: alone or with others, whatever its place."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    write(folder / "b.wav", noisy_voice(0.4))
    write(folder / "deep" / "a.flac", noisy_voice(0.3, level=0.05))
    (folder / "bad.wav").write_bytes(b"RIFFnothing")
    enhance(folder, "-o", tmp_path / "all", "--prior", prior, code=1)
    said = record(tmp_path / "all")
    assert list(said["failed"]) == ["bad.wav"] and "bad.wav" in said["failed"]["bad.wav"]
    assert {"a.flac", "b.wav"} <= set(said["outputs"])
    enhance(folder / "b.wav", "-o", tmp_path / "alone", "--prior", prior)
    assert np.array_equal(read_audio(tmp_path / "all" / "b.wav")[0], read_audio(tmp_path / "alone" / "b.wav")[0])


def test_none_readable_leaves_nothing(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.wav", "b.flac"):
        (folder / name).write_bytes(b"not audio")
    enhance(folder, "-o", tmp_path / "out", "--prior", prior, code=2)
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_twins_in_two_folders_are_refused(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x", "y"):
        (tmp_path / "in" / name).mkdir(parents=True)
        write(tmp_path / "in" / name / "a.wav", noisy_voice(0.2))
    enhance(tmp_path / "in", "-o", tmp_path / "out", "--prior", prior, code=2)
    assert "a.wav" in capsys.readouterr().err


def test_odd_recordings(prior: Path, tmp_path: Path) -> None:
    x = noisy_voice(0.5)
    with_nan = x.copy()
    with_nan[100:103] = np.nan
    clipped = np.clip(4 * x, -0.05, 0.05)
    cases = {
        "silent.wav": (0 * x, "silent"),
        "short.wav": (x[:800], None),
        "one.wav": (x[:1], None),
        "offset.wav": (x + 0.3, "offset"),
        "nan.wav": (with_nan, "not numbers"),
        "clipped.wav": (clipped, "clipped"),
    }
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (samples, _) in cases.items():
        write(folder / name, samples, subtype="FLOAT")
    enhance(folder, "-o", tmp_path / "out", "--prior", prior)
    warnings = record(tmp_path / "out")["warnings"]
    for name, (samples, word) in cases.items():
        found, _ = read_audio(tmp_path / "out" / name)
        assert found.shape == samples.shape and np.isfinite(found).all()
        if word is not None:
            assert any(name in sentence and word in sentence for sentence in warnings), (name, warnings)
    assert not read_audio(tmp_path / "out" / "silent.wav")[0].any()
    assert abs(float(read_audio(tmp_path / "out" / "offset.wav")[0].mean())) < 0.01


@pytest.mark.parametrize("content", [b"", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"OggS" + bytes(60), b"fLaC" + bytes(20)])
def test_bad_files_get_one_sentence(
    content: bytes, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.wav"
    file.write_bytes(content)
    enhance(file, "-o", tmp_path / "out", "--prior", prior, code=2)
    said = capsys.readouterr().err
    assert said.startswith("Error:") and "bad.wav" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nan_throughout_is_refused(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "nan.wav", np.full((800, 1), np.nan, np.float32), subtype="FLOAT")
    enhance(file, "-o", tmp_path / "out", "--prior", prior, code=2)
    assert "nan.wav" in capsys.readouterr().err


def test_a_finished_result_is_kept(prior: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", noisy_voice(0.3))
    words = (file, "-o", tmp_path / "out", "--prior", prior, "--method", "predict")
    enhance(*words)
    enhance(*words, code=2)
    enhance(*words, "--overwrite")


def test_a_run_cut_short_goes_on(prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished is not done again, and the result is that of an undisturbed run."""
    from domains.speech import verbs

    folder = tmp_path / "in"
    folder.mkdir()
    for name, level in (("a.wav", 0.02), ("b.wav", 0.05)):
        write(folder / name, noisy_voice(0.3, level=level))
    calls: list[str] = []
    plain = verbs.enhance_file

    def breaks(audio, *rest):  # type: ignore[no-untyped-def]
        calls.append(audio.path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(audio, *rest)

    monkeypatch.setattr(verbs, "enhance_file", breaks)
    enhance(folder, "-o", tmp_path / "out", "--prior", prior, code=130)
    assert not (tmp_path / "out" / "run.json").exists()
    enhance(folder, "-o", tmp_path / "out", "--prior", prior)
    assert calls == ["a.wav", "b.wav", "b.wav"]
    monkeypatch.undo()
    enhance(folder, "-o", tmp_path / "again", "--prior", prior)
    for name in ("a.wav", "b.wav"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert not list((tmp_path / "out").glob(".*"))


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.flac", noisy_voice(0.5, 44100, 2), 44100)
    assert main(["speech", "info", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["container"], said["rate_hz"], said["channels"], said["samples"]) == ("FLAC", 44100, 2, 22050)


def test_simulate_has_the_ratio_asked_for(tmp_path: Path) -> None:
    clean = write(tmp_path / "clean.wav", voice(0.6), subtype="FLOAT")
    rng = np.random.default_rng(1)
    noise = write(tmp_path / "noise.wav", 0.1 * rng.standard_normal(4000).astype(np.float32), 8000, "FLOAT")
    words = ["speech", "simulate", str(clean), "--noise", str(noise), "--quiet"]
    for name, seed in (("a.wav", "0"), ("b.wav", "0"), ("c.wav", "1")):
        assert main([*words, "-o", str(tmp_path / name), "--snr", "3", "--seed", seed]) == 0
    a, b, c = (soundfile.read(tmp_path / name)[0] for name in ("a.wav", "b.wav", "c.wav"))
    s = soundfile.read(clean)[0]
    assert abs(10 * np.log10((s**2).sum() / ((a - s) ** 2).sum()) - 3) < 1e-3
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert main(["speech", "simulate", str(clean), "-o", str(tmp_path / "d.wav")]) == 2


def test_simulate_a_room(tmp_path: Path) -> None:
    clean = write(tmp_path / "clean.wav", voice(0.4), subtype="FLOAT")
    response = np.zeros(800, np.float32)
    response[[0, 700]] = 1.0, 0.5
    room = write(tmp_path / "room.wav", response, subtype="FLOAT")
    assert main(["speech", "simulate", str(clean), "--rir", str(room), "-o", str(tmp_path / "wet.wav"), "--quiet"]) == 0
    s, wet = soundfile.read(clean)[0], soundfile.read(tmp_path / "wet.wav")[0]
    late = np.concatenate([np.zeros(700), s[:-700]])
    assert np.allclose(wet, s + 0.5 * late, atol=1e-5)
