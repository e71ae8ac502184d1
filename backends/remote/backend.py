"""A dialect and a transport make a `Backend`: encode the job, send it, decode each read into one batch of events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from inspect import isawaitable
from types import TracebackType

import msgspec

from backends.core.capabilities import Capabilities, ParamsRule, resolve
from backends.core.contracts import Batches, Decoder, Dialect
from backends.core.errors import BackendError, UpstreamProtocol, UpstreamUnavailable
from backends.core.events import Event, Failure
from backends.core.leaving import Leaving
from backends.core.request import GenerationRequest, Job, Prompt
from backends.remote.counted import Untold, counted, tokens
from backends.remote.transport import Body, Response, Sending, Timeouts, Transport

#: Renders a conversation where the dialect wants it rendered; may ask the network (`/apply-template`) to do it.
Renderer = Callable[[Job], "Sequence[Prompt] | Awaitable[Sequence[Prompt]]"]

#: What is read of an error's body, and for how long.
MAX_ERROR_BYTES = 64 * 1024
ERROR_BODY_S = 2.0
#: What a body gets to end after the answer in it has: then its connection is kept for the next request, else closed.
AFTER_END_S = 0.1
#: Bound of a body that is not streamed. Streams have none in total; decoders bound each event.
MAX_BODY_BYTES = 64 * 1024 * 1024


class RemoteBackend:
    """A `Backend` for one deployment of a remote server.

    Args:
        dialect: what the server speaks.
        transport: the way to it, owned by this backend: `aclose` closes it.
        capabilities: what the deployment can do; None = what the dialect declares.
        params: the deployment's rule for parameters that it lacks.
        timeouts: all but the wait for the first event, which the caller bounds.
        stops: strings that end an answer under the renderer's template, added to each rendered job's own.
        render: needed where `dialect.needs_prompt`; called for jobs with messages.
        untold: how to count what the server does not tell; None = it stays untold.

    Raises:
        ValueError: the dialect needs prompts and there is no renderer.
    """

    def __init__(
        self,
        dialect: Dialect,
        transport: Transport,
        *,
        capabilities: Capabilities | None = None,
        params: ParamsRule = "reject",
        timeouts: Timeouts | None = None,
        render: Renderer | None = None,
        stops: Sequence[str] = (),
        untold: Untold | None = None,
    ) -> None:
        if dialect.needs_prompt and render is None:
            raise ValueError(f"the dialect {dialect.name!r} needs a prompt renderer")
        self.dialect = dialect
        self.transport = transport
        self.timeouts = timeouts or Timeouts()
        self._capabilities = dialect.capabilities if capabilities is None else capabilities
        self._params: ParamsRule = params
        self._render = render
        self._stops = tuple(stops)
        self._untold = untold

    def open(self, job: Job, leaving: Leaving | None = None) -> AbstractAsyncContextManager[Batches]:
        """See `Backend.open`. `job.model` is the upstream's name of the model.

        Raises (from entering):
            UnsupportedParameter: the deployment's rule refuses one.
            BackendError: the transport's, or what a non-2xx answer stands for in this dialect.
        """
        return _Opened(self, job, leaving)

    async def aclose(self) -> None:
        """Close the transport."""
        await self.transport.aclose()

    def resolve(self, job: Job) -> Job:
        """The job as this deployment may be given it."""
        job = resolve(job, self._capabilities, self._params)
        if not self._stops or not self.dialect.needs_prompt or not isinstance(job, GenerationRequest) or job.prompts:
            return job
        own = job.sampling.stop
        stops = (*own, *(stop for stop in self._stops if stop not in own))
        return msgspec.structs.replace(job, sampling=msgspec.structs.replace(job.sampling, stop=stops))

    async def prompts(self, job: Job) -> Sequence[Prompt]:
        """The finished prompts of a job, where the dialect wants them; a plain completion brings its own."""
        if not self.dialect.needs_prompt or not isinstance(job, GenerationRequest):
            return ()
        given = job.prompts or await self._rendered(job)
        count = self._untold.prompt if self._untold is not None else None
        if count is None:
            return given
        return [msgspec.structs.replace(one, count=await tokens(count, one.text)) for one in given]

    async def _rendered(self, job: Job) -> Sequence[Prompt]:
        assert self._render is not None
        rendered = self._render(job)
        return await rendered if isawaitable(rendered) else rendered

    def counted(self, job: Job, prompts: Sequence[Prompt], batches: Batches) -> Batches:
        """The batches, with what the server does not tell where it can be counted here."""
        if self._untold is None or not isinstance(job, GenerationRequest):
            return batches
        return counted(batches, job, prompts, self._untold)


class _Opened(AbstractAsyncContextManager[Batches]):
    """One job on its way. Its exit has only synchronous effects: those of the transport's exit."""

    __slots__ = ("_backend", "_job", "_leaving", "_sending")

    def __init__(self, backend: RemoteBackend, job: Job, leaving: Leaving | None) -> None:
        self._backend = backend
        self._job = job
        self._leaving = leaving
        self._sending: Sending | None = None

    async def __aenter__(self) -> Batches:
        backend, leaving = self._backend, self._leaving
        self._leaving = None  # it knows us now: a circle would keep the whole request until the collector runs
        job = backend.resolve(self._job)
        if leaving is not None and not leaving.join(self):
            raise UpstreamUnavailable("The client has left.")
        prompts = await backend.prompts(job) if backend.dialect.needs_prompt else ()
        request = backend.dialect.encode(job, prompts)
        sending = self._sending = backend.transport.send(request, backend.timeouts)
        try:
            response = await sending.__aenter__()
        except BaseException:
            self._sending = None
            raise
        try:
            if not 200 <= response.status < 300:
                raise backend.dialect.failure(response.status, response.headers, await _error_body(response))
            if response.headers.get("content-type", "").lower().startswith("text/html"):
                raise UpstreamProtocol("The deployment answered with a web page.", detail="content-type text/html")
            limit = None if isinstance(job, GenerationRequest) and job.stream else MAX_BODY_BYTES
            batches = _Batches(response.chunks, backend.dialect.decoder(job, prompts, response.headers), limit)
            answer = backend.counted(job, prompts, batches)
        except BaseException as error:
            self._sending = None
            await sending.__aexit__(type(error), error, error.__traceback__)
            raise
        return answer

    def part(self) -> float:
        """See `Party.part`."""
        sending = self._sending
        return 0.0 if sending is None else sending.part()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sending, self._sending = self._sending, None
        if sending is not None:
            await sending.__aexit__(kind, error, trace)


class _Batches:
    """Body pieces through a decoder: one batch per read that has events, then the decoder's last ones."""

    __slots__ = ("_chunks", "_closed", "_decoder", "_left")

    def __init__(self, chunks: Body, decoder: Decoder, limit: int | None) -> None:
        self._chunks = chunks
        self._decoder = decoder
        self._left = limit
        self._closed = False

    def __aiter__(self) -> _Batches:
        return self

    async def __anext__(self) -> Sequence[Event]:
        if self._closed:  # first in the function: a traceback's line is found by reading its line table up to there
            raise StopAsyncIteration
        chunks = self._chunks
        while not self._closed:
            if self._decoder.ended:
                self._closed = True
                await self._pass_over()
                break
            try:
                data = await chunks.__anext__()
            except StopAsyncIteration:
                self._closed = True
                if last := self._decoded(None):
                    return last
                break
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    raise UpstreamProtocol("The deployment's answer is too large.", detail="over the body limit")
            events = self._decoded(data)
            if chunks.taken:
                self._closed = True
                events += self._decoded(None)
            if events:
                if type(events[-1]) is Failure:
                    self._closed = True
                return events
        raise StopAsyncIteration

    async def _pass_over(self) -> None:
        """Read what follows the answer's end, so that the connection can be used again, but not for long: some servers
        never end the body. The answer is whole, so nothing that happens here can spoil it.
        """
        limit = asyncio.timeout(AFTER_END_S)
        try:
            async with limit:
                async for _ in self._chunks:
                    pass
        except BackendError:
            pass
        except TimeoutError:
            if not limit.expired():
                raise

    def _decoded(self, data: bytes | None) -> list[Event]:
        """What the decoder makes of a read, or of the end. Decoders do not raise; one that does has met bytes it was
        not written for.
        """
        try:
            return self._decoder.close() if data is None else self._decoder.feed(data)
        except BackendError:
            raise
        except Exception as bug:
            detail = f"{type(bug).__name__}: {bug}"
            raise UpstreamProtocol("The deployment's answer could not be read.", detail=detail) from bug


async def _error_body(response: Response) -> bytes:
    """At most `MAX_ERROR_BYTES` of an error's body: what came of it in `ERROR_BODY_S`, however it ended."""
    body = bytearray()
    limit = asyncio.timeout(ERROR_BODY_S)
    try:
        async with limit:
            async for piece in response.chunks:
                body += piece
                if len(body) >= MAX_ERROR_BYTES:
                    break
    except BackendError:
        pass  # the status says more than the way the body broke off
    except TimeoutError:
        if not limit.expired():
            raise
    return bytes(body[:MAX_ERROR_BYTES])
