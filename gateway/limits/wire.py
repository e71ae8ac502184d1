"""Bytes to and from one Redis connection: packing, parsing, connecting with the handshake. No policy here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

from gateway.limits.commands import Args
from gateway.limits.scripts import Script

ReplyError = hiredis.ReplyError
#: The words of one command as the bytes to send.
pack = cast("Callable[[Args], bytes]", hiredis.pack_command)


class Wire(asyncio.Protocol):
    """One connection. `on_reply` gets each reply in order, `on_lost` is called once when it ends by itself."""

    def __init__(self) -> None:
        self.on_reply: Callable[[Any], None] = _ignore
        self.on_lost: Callable[[], None] = _nothing
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self.prompt = False
        """Whether the kernel has what `write` was given when it returns, unless it is full. TLS has it later."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(0)  # uvloop otherwise writes at the end of the turn, in no fixed order
        self.prompt = self._transport.get_extra_info("sslcontext") is None

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes; complete replies are handed on."""
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                self.on_reply(reply)
        except hiredis.ProtocolError:
            lost = self.on_lost
            self.close()
            lost()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """asyncio: ended."""
        lost = self.on_lost
        self.close()
        lost()

    def write(self, data: bytes) -> None:
        """Send packed commands."""
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """Drop the connection now; nothing is handed on any more."""
        self.on_reply, self.on_lost = _ignore, _nothing
        if self._transport is not None:
            self._transport.abort()


async def connect(url: str, scripts: Sequence[Script]) -> tuple[Wire, int]:
    """A connection that is authenticated, has its database selected and the scripts loaded; and the server's clock, µs.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads it.
        scripts: loaded, so that they can be called by their SHA-1.

    Raises:
        OSError: it cannot be reached, or refuses the handshake.
    """
    where: dict[str, Any] = dict(parse_url(url))
    loop = asyncio.get_running_loop()
    wire = Wire()
    try:
        if path := where.get("path"):
            await loop.create_unix_connection(lambda: wire, path)
        else:
            host, port = where.get("host", "localhost"), int(where.get("port", 6379))
            await loop.create_connection(lambda: wire, host, port, ssl=_tls(where))
        words = _handshake(where, scripts)
        replies = await _ask(loop, wire, words)
    except BaseException:
        wire.close()
        raise
    seconds, micros = replies[-1]
    return wire, int(seconds) * 1_000_000 + int(micros)


async def _ask(loop: asyncio.AbstractEventLoop, wire: Wire, words: Sequence[Args]) -> list[Any]:
    done: asyncio.Future[None] = loop.create_future()
    replies: list[Any] = []

    def collect(reply: Any) -> None:
        replies.append(reply)
        if done.done():
            return
        if isinstance(reply, ReplyError):
            done.set_exception(ConnectionError(f"handshake: {str(reply)[:64]}"))
        elif len(replies) == len(words):
            done.set_result(None)

    def lost() -> None:
        if not done.done():
            done.set_exception(ConnectionError("closed during the handshake"))

    wire.on_reply, wire.on_lost = collect, lost
    wire.write(b"".join([pack(command) for command in words]))
    await done
    return replies


def _handshake(where: dict[str, Any], scripts: Sequence[Script]) -> list[Args]:
    words: list[Args] = []
    if password := where.get("password"):
        username = where.get("username")
        words.append(("AUTH", username, password) if username else ("AUTH", password))
    if database := where.get("db"):
        words.append(("SELECT", int(database)))
    words.append(("CLIENT", "SETNAME", "switchyard-limits"))
    words += [("SCRIPT", "LOAD", script.text) for script in scripts]
    words.append(("TIME",))
    return words


def _tls(where: dict[str, Any]) -> ssl.SSLContext | None:
    if where.get("connection_class") is not SSLConnection:
        return None
    context = ssl.create_default_context(cafile=where.get("ssl_ca_certs"))
    if str(where.get("ssl_cert_reqs", "required")).lower() == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _ignore(reply: Any) -> None:
    pass


def _nothing() -> None:
    pass
