"""The policy server: clients do not mix, and nothing that arrives crashes it or is executed."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from domains.robot.client import ChunkQueue, RobotClient
from domains.robot.policy import Policy
from domains.robot.policyfile import PolicyFile
from domains.robot.server import ServeConfig, Server
from domains.robot.wire import MAX_BODY, PREFIX, FrameError, lengths, pack, unpack
from suite.errors import InputError
from tests.robot_cases import policy_file

TRAP: list[int] = []


class _Evil:
    def __reduce__(self) -> Any:
        return TRAP.append, (1,)


class Running:
    """A server in its own thread."""

    def __init__(self, file: PolicyFile, **changes: Any) -> None:
        self.server = Server(file, ServeConfig(**changes))
        self.started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self.thread.start()
        assert self.started.wait(10)

    async def _main(self) -> None:
        def ready(_host: str, port: int) -> None:
            self.port = port
            self.started.set()

        self.loop = asyncio.get_running_loop()
        self.task = asyncio.ensure_future(self.server.run("127.0.0.1", 0, ready))
        await asyncio.gather(self.task, return_exceptions=True)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(10)

    def client(self, **options: Any) -> RobotClient:
        return RobotClient(port=self.port, **options)

    def raw(self, data: bytes) -> bytes:
        """Everything the server says to these bytes before it hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            parts = b""
            while part := s.recv(65536):
                parts += part
        return parts


@pytest.fixture(scope="module")
def file() -> PolicyFile:
    return policy_file()


@pytest.fixture(scope="module")
def running(file: PolicyFile) -> Iterator[Running]:
    found = Running(file, guard={"stale_after_s": 30})  # a loaded machine may answer late
    yield found
    found.stop()


def seen(robot: int, step: int) -> np.ndarray[Any, Any]:
    return np.array([0.1 * robot + 0.01 * step, -0.2, 0.5, 0.4 - 0.1 * robot, 0.9])


def test_eight_clients_do_not_mix(running: Running, file: PolicyFile) -> None:
    """Eight robots at once get what each would get alone."""
    found: dict[int, list[Any]] = {}

    def robot(number: int) -> None:
        with running.client() as client:
            client.reset(number)
            found[number] = [client.act(seen(number, step))[0] for step in range(6)]

    threads = [threading.Thread(target=robot, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number in range(8):
        alone = Policy(file)
        alone.reset(number)
        np.testing.assert_allclose(found[number], [alone.act(seen(number, k)).action for k in range(6)], atol=1e-6)


def test_what_an_answer_says(running: Running) -> None:
    with running.client() as client:
        assert client.card["horizon"] == 8 and client.card["action"] == ["x", "y", "grip"]
        action, about = client.act(seen(0, 0), deadline_ms=1e6)
        assert action.shape == (3,) and about["chunk"].shape == (8, 3) and about["source"] == "fresh"
        _, about = client.act(None)
        assert about["source"] == "queue" and about["interventions"]["missing"] == 1
        with pytest.raises(InputError, match="5 numbers"):
            client.act(np.zeros(4))
        assert client.act(seen(0, 1))[0].shape == (3,)  # the connection lives on


def test_an_old_observation_is_stale(running: Running) -> None:
    with running.client() as client:
        now = time.monotonic()
        header = {"op": "act", "time": now}
        client.call(header, {"observation": seen(0, 0)})
        reply, _ = client.call({"op": "act", "time": now - 90}, {"observation": seen(0, 1)})
        assert reply["interventions"]["stale"] == 1 and reply["source"] == "queue"


def test_chunks_continue_each_other(running: Running) -> None:
    with running.client() as client:
        first = client.chunk(seen(0, 0))
        second = client.chunk(seen(0, 0), first[2:], delay=2)
        np.testing.assert_allclose(second[:2, :2], first[2:4, :2], atol=0.05)


def frames() -> dict[str, bytes]:
    good = pack({"op": "act"}, {"observation": np.zeros(5)})
    return {
        "pickle": pickle.dumps(_Evil()),
        "pickle in the header": PREFIX.pack(b"DSR1", len(pickle.dumps(_Evil())), 0) + pickle.dumps(_Evil()),
        "pickle in the body": PREFIX.pack(b"DSR1", 12, len(pickle.dumps(_Evil())))
        + b'{"op":"act"}'
        + pickle.dumps(_Evil()),
        "oversized": PREFIX.pack(b"DSR1", 2, MAX_BODY + 1) + b"{}",
        "huge": PREFIX.pack(b"DSR1", 0xFFFFFFFF, 0xFFFFFFFF),
        "cut": good[:-3],
        "flipped": good[:20] + b"\xff\xff" + good[22:],
        "no object": PREFIX.pack(b"DSR1", 2, 0) + b"[]",
        "NaN": PREFIX.pack(b"DSR1", 23, 0) + b'{"op":"act","time":NaN}',
        "deep": PREFIX.pack(b"DSR1", 60000, 0) + b"[" * 60000,
        "nothing": b"",
        "other protocol": struct.pack(">I", 7) + b"x" * 40,
    }


@pytest.mark.parametrize("name", frames())
def test_bad_frames_are_refused(running: Running, name: str) -> None:
    answer = running.raw(frames()[name])
    if answer:
        head, body = lengths(answer[: PREFIX.size])
        reply, _ = unpack(answer[PREFIX.size : PREFIX.size + head], answer[len(answer) - body :] if body else b"")
        assert reply["ok"] is False and "Traceback" not in reply["error"]
    assert not TRAP
    with running.client() as client:  # and the server lives on
        assert client.act(seen(0, 0))[0].shape == (3,)


@pytest.mark.parametrize(
    ("header", "arrays"),
    [
        ({"op": "shutdown"}, {}),
        ({"op": ["act"]}, {}),
        ({}, {}),
        ({"op": "act"}, {"observation": np.zeros((2, 5))}),
        ({"op": "chunk"}, {}),
        ({"op": "chunk", "delay": "2"}, {"observation": np.zeros(5)}),
        ({"op": "chunk", "delay": 99}, {"observation": np.zeros(5), "left": np.zeros((4, 3))}),
        ({"op": "chunk"}, {"observation": np.zeros(5), "left": np.zeros((4, 2))}),
    ],
)
def test_bad_calls_are_told(running: Running, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    with running.client() as client:
        with pytest.raises(InputError, match="refuses"):
            client.call(header, arrays)
        assert client.act(seen(0, 0))[0].shape == (3,)


def test_health_over_http_and_frames(running: Running) -> None:
    head, body = running.raw(b"GET /health HTTP/1.0\r\n\r\n").split(b"\r\n\r\n", 1)
    assert b"200 OK" in head and json.loads(body)["status"] == "ok"
    with running.client() as client:
        reply, _ = client.call({"op": "health", "seq": 7})
        assert reply["policy"] == "walk" and reply["clients"] >= 1 and reply["seq"] == 7


def test_the_token(file: PolicyFile) -> None:
    running = Running(file, token="secret")
    try:
        with running.client(token="secret") as client:
            assert client.act(seen(0, 0))[0].shape == (3,)
        for token in (None, "guess"):
            with pytest.raises(InputError, match="token"):
                running.client(token=token)
        assert b"token" in running.raw(pack({"op": "act"}, {"observation": np.zeros(5)}))
    finally:
        running.stop()


def test_too_many_clients_are_refused(file: PolicyFile) -> None:
    running = Running(file, max_clients=1)
    try:
        with running.client(), pytest.raises(InputError, match="too many"):
            running.client()
    finally:
        running.stop()


def test_an_open_address_needs_a_token(file: PolicyFile) -> None:
    with pytest.raises(InputError, match="token"):
        asyncio.run(Server(file, ServeConfig()).run("0.0.0.0", 0, lambda *_: None))


def test_frames_round_trip() -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.uint8)}
    frame = pack({"op": "x", "n": 1.5}, arrays)
    head, body = lengths(frame[: PREFIX.size])
    header, found = unpack(frame[PREFIX.size : PREFIX.size + head], frame[PREFIX.size + head :])
    assert header == {"op": "x", "n": 1.5} and len(frame) == PREFIX.size + head + body
    np.testing.assert_array_equal(found["a"], arrays["a"])
    with pytest.raises(FrameError):
        pack({"op": "x" * 70000})


def test_the_queue_skips_what_the_latency_has_cost() -> None:
    queue = ChunkQueue(0.1)
    chunk = np.arange(8.0)[:, None]
    assert not len(queue.left(0.0))
    queue.merge(chunk, 10.0)
    assert queue.left(10.31)[0, 0] == 3 and queue.delay(0.25) == 3
    queue.merge(chunk + 100, 10.2)
    queue.merge(chunk - 100, 10.1)  # late: made from an older observation
    assert queue.left(10.31)[0, 0] == 101 and not len(queue.left(11.5))


def test_pictures_go_with_the_observation(tmp_path: Any) -> None:
    from tests.test_robot_vision import made, scene

    running = Running(made(tmp_path, iterations=20)[0], guard={"stale_after_s": 30})
    try:
        with running.client() as robot:
            assert robot.card["cameras"] == ["eye"] and robot.card["observation"] == ["a", "b"]
            assert robot.act(np.zeros(2))[1]["interventions"]["missing"] == 1
            _, about = robot.act(np.zeros(2), pictures={"eye": scene(0.1, 0.2)})
            assert about["source"] == "fresh" and not about["interventions"].get("missing")
    finally:
        running.stop()
