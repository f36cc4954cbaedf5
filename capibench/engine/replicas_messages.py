"""What the run's process and a replica's process say to each other.

Every message is a frozen dataclass; on the wire it is a frame: four bytes of length, then JSON
with the message's name and fields. Nothing that a process receives can run code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from capibench.engine.engine import Generation, GenerationRequest

_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Begin:
    """To the replica, first: what to load and how to run."""

    engine: Mapping[str, Any]  # configuration node of the engine inside
    recipe: Mapping[str, Any] | None  # of ModelRecipe.to_nodes; None: the engine needs no model
    plugins: Sequence[str]  # modules besides capibench that the nodes name
    num_threads: int  # of every compute library
    cores: Sequence[int] | None  # it may run on; None: on all that its parent may


@dataclass(frozen=True, slots=True)
class Work:
    """To the replica: generate for `batch`. Several may be under way at once."""

    ticket: int
    batch: Sequence[GenerationRequest]


@dataclass(frozen=True, slots=True)
class Stop:
    """To the replica: end. The end of the stream means the same, without a farewell."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From the replica: loaded, and able to work."""

    now_s: float  # time of its event loop, to be compared with the parent's
    num_positions: int | None  # of the model; None: no bound, or no model
    facts: Mapping[str, Any] | None  # fields of ModelFacts; None: no model
    description: Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Refused:
    """From the replica: it cannot be started, and ends."""

    error: str  # the exception's class
    key: str  # of the configuration, where the error is about a value; else ""
    problem: str


@dataclass(frozen=True, slots=True)
class Done:
    """From the replica: the answers to the batch of that ticket, in its order."""

    ticket: int
    answers: Sequence[Generation]


@dataclass(frozen=True, slots=True)
class Failed:
    """From the replica: the batch of that ticket has no answers; the replica lives."""

    ticket: int
    problem: str


@dataclass(frozen=True, slots=True)
class Described:
    """From the replica, when it has become idle: what its engine says about itself by now."""

    description: Mapping[str, str | int | float]


Message: TypeAlias = Begin | Work | Stop | Ready | Refused | Done | Failed | Described
_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Begin, Work, Stop, Ready, Refused, Done, Failed, Described)
}


def encode(message: Message) -> bytes:
    """The frame of `message`.

    Raises:
        TypeError: a text in it is not valid Unicode (a lone surrogate).
    """
    body = orjson.dumps([type(message).__name__, message])
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def decode(body: bytes) -> Message:
    """The message in a frame's body."""
    name, fields = orjson.loads(body)
    if name == "Work":
        fields["batch"] = [GenerationRequest(**request) for request in fields["batch"]]
    elif name == "Done":
        fields["answers"] = [Generation(**answer) for answer in fields["answers"]]
    return _KINDS[name](**fields)


class Connection:
    """One end of the stream between the two processes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: Message) -> None:
        """Never waits: the stream buffers. What is sent to a process that has ended is lost."""
        self._writer.write(encode(message))

    async def receive(self) -> Message | None:
        """The next message; None when the other process has closed its end or has ended."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            return decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        self._writer.close()
