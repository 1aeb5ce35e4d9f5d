"""A robot's side of `robot serve`: calls, and a queue that aligns each chunk with the time that its making took."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from domains.robot.wire import PREFIX, Arrays, lengths, pack, unpack
from suite.errors import InputError

Vector = NDArray[np.float64]


class RobotClient:
    """A connection to a policy server; a context manager.

    Args:
        timeout_s: of every call.

    Raises:
        InputError: no connection, or the server refuses the token.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 5555, token: str | None = None, timeout_s: float = 5.0):
        try:
            self._socket = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise InputError(f"no policy server at {host} port {port}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.card, _ = self.call({"op": "hello", "token": token})

    def call(self, header: dict[str, Any], arrays: Arrays | None = None) -> tuple[dict[str, Any], Arrays]:
        """Send a frame and wait for the answer.

        Raises:
            InputError: the server refuses.
        """
        self._socket.sendall(pack(header, arrays))
        head, body = lengths(self._receive(PREFIX.size))
        data = self._receive(head + body)
        reply, values = unpack(data[:head], data[head:])
        if not reply.get("ok"):
            raise InputError(f"the policy server refuses: {reply.get('error')}")
        return reply, values

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode."""
        self.call({"op": "reset", "seed": seed})

    def act(
        self,
        observation: ArrayLike | None,
        deadline_ms: float | None = None,
        pictures: Mapping[str, ArrayLike] | None = None,
    ) -> tuple[Vector, dict[str, Any]]:
        """The guarded action `(A,)`, and what the server says about it.

        Args:
            observation: `(O,)`; None: there is none.
            pictures: `(rows, columns, 3)` of each camera of the policy; a frame holds 4 MiB.
        """
        arrays = {} if observation is None else {"observation": np.asarray(observation, dtype=np.float64)}
        arrays |= {name: np.asarray(picture) for name, picture in (pictures or {}).items()}
        header = {"op": "act", "time": time.monotonic(), "deadline_ms": deadline_ms}
        reply, values = self.call(header, arrays)
        return values["action"], {**reply, "chunk": values["chunk"]}

    def chunk(self, observation: ArrayLike, left: ArrayLike | None = None, delay: int = 0) -> Vector:
        """A new chunk `(H, A)` that goes on where `left`, the rest of the last one, will be after `delay` steps."""
        arrays = {"observation": np.asarray(observation, dtype=np.float64)}
        if left is not None and np.asarray(left).size:
            arrays["left"] = np.asarray(left, dtype=np.float64)
        return self.call({"op": "chunk", "delay": delay}, arrays)[1]["chunk"]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> RobotClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise InputError("the policy server has closed the connection")
            parts += part
        return bytes(parts)


class ChunkQueue:
    """Actions to come. A chunk made from an observation of time t is executed from the step that is now, not from its start.

    Args:
        dt: control period in s.
    """

    def __init__(self, dt: float) -> None:
        self.dt = dt
        self._chunk: Vector = np.zeros((0, 0))
        self._made = 0.0  # time of the first action of the chunk

    def merge(self, chunk: Vector, observed_at: float) -> None:
        """Take over a chunk `(H, A)`; one made from an older observation than that in the queue is ignored."""
        if not len(self._chunk) or observed_at >= self._made:
            self._chunk, self._made = chunk, observed_at

    def left(self, now: float) -> Vector:
        """The actions `(T, A)` from now on; empty when they are used up."""
        return self._chunk[max(0, self._index(now)) :]

    def delay(self, latency: float) -> int:
        """Steps that pass while a chunk is made."""
        return math.ceil(latency / self.dt - 1e-9)

    def _index(self, now: float) -> int:
        return math.floor((now - self._made) / self.dt + 1e-6)
