"""The four seams of the backends library, as typing Protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.errors import BackendError
from backends.core.events import Event
from backends.core.leaving import Leaving
from backends.core.request import Job, Prompt
from backends.core.usage import Usage

#: Of a response whose headers are not known.
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class UpstreamRequest(msgspec.Struct, frozen=True, gc=False):
    """What a dialect wants sent: no host and no credentials, the transport adds both.

    `path` is relative to the deployment's base_url and begins with "/".
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Decoder(Protocol):
    """Upstream response body bytes to events. Single use, accepts any byte split, never raises on input.

    What cannot be decoded becomes a `Failure` event; after it nothing more comes out.
    """

    @property
    def ended(self) -> bool:
        """Whether the answer is over (its terminator or a `Failure` was seen): nothing that may still come adds an event."""

    def feed(self, data: bytes, /) -> list[Event]:
        """Events completed by these bytes."""

    def close(self) -> list[Event]:
        """The body has ended: the last events, or a `truncated` Failure when its terminator was missing."""


class Dialect(Protocol):
    """A backend's wire language: pure functions and decoders, no I/O, no clock, no randomness."""

    @property
    def name(self) -> str:
        """Its registry name."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do when quirks and configuration say nothing else."""

    @property
    def needs_prompt(self) -> bool:
        """Whether `encode` wants the conversation rendered by a chat template first."""

    def encode(self, job: Job, prompts: Sequence[Prompt] = ()) -> UpstreamRequest:
        """The request for a job. Idempotent. `job.model` is the upstream's name of the model."""

    def decoder(self, job: Job, prompts: Sequence[Prompt] = (), headers: Mapping[str, str] = NO_HEADERS) -> Decoder:
        """A fresh decoder of a 2xx response's body.

        `prompts` as they were given to `encode` (some servers repeat the prompt in the answer); `headers` are the
        response's, names in lower case (TGI tells a prompt's tokens only there).
        """

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> BackendError:
        """The error that a non-2xx response stands for. `headers` have lower-case names; `body` may be cut short."""


#: Batches of events: one per network read or engine step, never empty.
Batches = AsyncIterator[Sequence[Event]]


class Backend(Protocol):
    """Anything that can run a job."""

    def open(self, job: Job, leaving: Leaving | None = None) -> AbstractAsyncContextManager[Batches]:
        """Start the job. Whoever talks to a server for it joins `leaving` before it begins.

        Errors before the first event raise `BackendError` from `__aenter__` or from the first `__anext__`; later ones
        come as a `Failure` event or a raised `BackendError`. `__aexit__` never awaits anything that can block:
        leaving early closes the upstream connection or cancels the engine's request at once.
        """

    async def aclose(self) -> None:
        """Release connections; no job may be open."""


class Engine(Protocol):
    """A model in this process, driven by `backends.engines.host` on its one engine thread."""

    def submit(self, job: Job, id: str) -> None:
        """Take a job. Raises BackendError or BadRequest when it cannot ever run."""

    def cancel(self, id: str) -> Usage | None:
        """Forget a job at once, queued or running. An unknown id is ignored.

        Returns:
            What it came to, exactly, where it has made something and the engine can tell.
        """

    def hurry(self) -> None:
        """A job is about to be cancelled: end a long step early if that can be done. From another thread."""

    def nudge(self) -> None:
        """A command waits: a `step` that only waits for others (another thread, another process) is to return now.

        From another thread. An engine that computes in `step` itself has nothing to do.
        """

    def waiting_s(self) -> float:
        """Seconds since the others that compute for it last spoke, while they have jobs; 0 when it computes by itself.

        From another thread; for the watchdog.
        """

    def step(self) -> Sequence[tuple[str, Sequence[Event]]]:
        """Advance by one step; the events of each job that has some. Empty when idle. `Usage` or `Failure` end a job."""

    def busy(self) -> bool:
        """Whether `step` has work."""

    def describe(self) -> Mapping[str, object]:
        """Facts for `hello` and metrics: context, slots, capabilities, kv use."""

    def close(self) -> None:
        """Free the model."""


@runtime_checkable
class CountsPrompts(Protocol):
    """An `Engine` that can say how many tokens a job's prompts have without running it."""

    def prompt_tokens(self, job: Job) -> int:
        """As its `Usage` would count them. From another thread than the engine's, while it computes.

        Raises:
            BadRequest and its like: it would refuse the job.
        """
