"""`robot serve`: one policy for several robots over TCP, each with its own history, plan, guard and clock.

Operations (the header's `op`): `hello` (token, names and rates), `reset` (seed), `act` (observation -> guarded action and
plan), `chunk` (observation and what is left of the last chunk -> new chunk, by real-time chunking), `health`. An HTTP
`GET /health` on the same port is answered too.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field
from torch import from_numpy

from domains.robot.policy import ActionResult, Policy
from domains.robot.policyconfig import PolicyConfig
from domains.robot.policyfile import PolicyFile
from domains.robot.wire import PREFIX, Arrays, FrameError, lengths, pack, unpack
from suite.errors import InputError

Reply = tuple[dict[str, Any], Arrays]


class ServeConfig(PolicyConfig):
    """Settings of `robot serve`.

    Attributes:
        token: clients must say it; needed where the host is not a loopback address.
        max_clients: further ones are refused.
        max_waiting: calls that may wait for the network; a further one is told `busy` at once.
        idle_s: a client that says nothing for so long is disconnected.
    """

    token: str | None = None
    max_clients: int = Field(default=16, ge=1)
    max_waiting: int = Field(default=16, ge=1)
    idle_s: float = Field(default=60.0, gt=0)


@dataclass
class Client:
    """What the server keeps for one connection.

    Attributes:
        offset: the least difference seen between the server's clock and the client's: the clock difference plus the
            fastest transport. What an observation exceeds it by is its age.
    """

    policy: Policy
    allowed: bool
    offset: float = float("inf")
    calls: int = 0

    def stamp(self, sent: Any) -> float | None:
        """The client's time of observation on the server's clock."""
        if not isinstance(sent, int | float) or isinstance(sent, bool):
            return None
        self.offset = min(self.offset, time.monotonic() - sent)
        return sent + self.offset


@dataclass
class Server:
    """Serves one policy.

    Args:
        file: the policy.
        config: see `ServeConfig`.
    """

    file: PolicyFile
    config: ServeConfig
    counters: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self._network = asyncio.Lock()
        self._waiting = 0
        self._connections = 0
        self._began = time.monotonic()

    async def run(self, host: str, port: int, ready: Callable[[str, int], None]) -> None:
        """Serve until cancelled.

        Raises:
            InputError: the address cannot be used, or is open to others and there is no token.
        """
        if not loopback(host) and self.config.token is None:
            raise InputError(f"--host {host} is open to other machines; set a token (--set token=...) or use 127.0.0.1")
        try:
            server = await asyncio.start_server(self._connected, host, port, limit=1 << 16)
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot listen on {host} port {port}: {error}") from error
        async with server:
            ready(*server.sockets[0].getsockname()[:2])
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        self.counters["connections"] += 1
        try:
            if self._connections > self.config.max_clients:
                await self._send(writer, pack({"ok": False, "error": "too many clients"}))
                return
            await self._converse(reader, writer)
        except FrameError as error:
            self.counters["refused_frames"] += 1
            await self._send(writer, pack({"ok": False, "error": str(error)}))
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            self.counters["broken_connections"] += 1
        finally:
            self._connections -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = None
        while True:
            prefix = await asyncio.wait_for(reader.readexactly(PREFIX.size), self.config.idle_s)
            if prefix.startswith(b"GET "):
                await self._send(writer, self._http())
                return
            head, body = lengths(prefix)
            data = await asyncio.wait_for(reader.readexactly(head + body), self.config.idle_s)
            header, arrays = unpack(data[:head], data[head:])
            if client is None:
                async with self._network:
                    policy = await asyncio.to_thread(Policy, self.file, self.config)
                client = Client(policy, self.config.token is None)
            reply, values = await self._answer(client, header, arrays)
            if "seq" in header:
                reply["seq"] = header["seq"]
            await self._send(writer, pack(reply, values))

    async def _send(self, writer: asyncio.StreamWriter, frame: bytes) -> None:
        try:
            writer.write(frame)
            await asyncio.wait_for(writer.drain(), self.config.idle_s)
        except (ConnectionError, TimeoutError):
            self.counters["broken_connections"] += 1

    async def _answer(self, client: Client, header: dict[str, Any], arrays: Arrays) -> Reply:
        op = header.get("op")
        if op == "health":
            return {"ok": True, **self.health()}, {}
        if op == "hello":
            given = header.get("token")
            client.allowed = self.config.token is None or (
                isinstance(given, str) and hmac.compare_digest(given.encode(), self.config.token.encode())
            )
        if not client.allowed:
            self.counters["refused_tokens"] += 1
            return {"ok": False, "error": "wrong or missing token; say hello with it first"}, {}
        try:
            match op:
                case "hello":
                    return {"ok": True, **self._card()}, {}
                case "reset":
                    seed = header.get("seed")
                    client.policy.reset(seed if isinstance(seed, int) and 0 <= seed < 2**63 else None)
                    return {"ok": True}, {}
                case "act" | "chunk":
                    return await self._turn(client, op, header, arrays)
        except InputError as error:
            self.counters["refused_inputs"] += 1
            return {"ok": False, "error": str(error)}, {}
        return {"ok": False, "error": f"unknown op {str(op)[:40]!r}; hello, reset, act, chunk, health"}, {}

    async def _turn(self, client: Client, op: str, header: dict[str, Any], arrays: Arrays) -> Reply:
        """One call of the policy; they run one after another, off the event loop."""
        if self._waiting >= self.config.max_waiting:
            self.counters["busy"] += 1
            return {"ok": False, "error": "busy"}, {}
        work = act if op == "act" else chunk
        self._waiting += 1
        try:
            stamp = client.stamp(header.get("time"))
            async with self._network:
                reply = await asyncio.to_thread(work, client.policy, header, arrays, stamp)
        finally:
            self._waiting -= 1
        client.calls += 1
        self.counters["calls"] += 1
        return reply

    def _card(self) -> dict[str, Any]:
        card = self.file.card
        names = ("name", "action", "fps", "horizon", "observation_steps")
        facts = {name: getattr(card, name) for name in names}
        return {**facts, "observation": card.observed, "cameras": list(card.cameras.names)}

    def health(self) -> dict[str, Any]:
        """Facts that need no token."""
        return {
            "status": "ok",
            "policy": self.file.card.name,
            "uptime_s": round(time.monotonic() - self._began, 1),
            "clients": self._connections,
            "counters": dict(self.counters),
        }

    def _http(self) -> bytes:
        body = json.dumps(self.health()).encode()
        head = f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


def act(policy: Policy, header: dict[str, Any], arrays: Arrays, stamp: float | None) -> Reply:
    """The operation `act`."""
    due = header.get("deadline_ms")
    deadline = due / 1000 if isinstance(due, int | float) and 0 < due < 1e9 else None
    result: ActionResult = policy.act(_observation(policy, arrays), deadline_s=deadline, timestamp=stamp)
    reply = {
        "ok": True,
        "source": result.source,
        "nfe": result.nfe,
        "latency_ms": round(1000 * result.latency, 3),
        "interventions": result.interventions,
    }
    return reply, {"action": result.action, "chunk": result.chunk}


def chunk(policy: Policy, header: dict[str, Any], arrays: Arrays, stamp: float | None) -> Reply:
    """The operation `chunk`."""
    observation = _observation(policy, arrays)
    if observation is None:
        raise InputError("the operation chunk needs an observation")
    delay, left = header.get("delay", 0), arrays.get("left")
    if not isinstance(delay, int) or (left is not None and left.shape[-1:] != (len(policy.card.action),)):
        raise InputError(f"the operation chunk takes a whole delay and left of shape (T, {len(policy.card.action)})")
    left_over = None if left is None or not left.size else from_numpy(left.astype(np.float32))
    features = observation if isinstance(observation, dict) else {"observation.state": observation}
    found = policy.predict_action_chunk(features, delay, left_over)
    return {"ok": True}, {"chunk": found[0].double().numpy()}


def _observation(policy: Policy, arrays: Arrays) -> Any:
    """What a client has seen: its vector, with the pictures of a policy that has cameras; None where the vector is missing."""
    observation = _single(arrays.get("observation"))
    if observation is None or policy.card.vision is None:
        return observation
    return {**arrays, "observation.state": observation}


def _single(observation: Any) -> Any:
    """One observation `(O,)`; a client is one robot.

    Raises:
        InputError: a batch.
    """
    if observation is not None and observation.ndim != 1:
        raise InputError(f"a client sends one observation (dimensions,), not {observation.shape}")
    return observation


def loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
