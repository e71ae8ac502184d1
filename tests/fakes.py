"""Plain stand-ins for the seams of the pipeline: an exchange, a protocol, backends, a store, a gate."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from backends.core.errors import BadRequest, GatewayError
from backends.core.events import Event, TextDelta
from backends.core.request import GenerationRequest, Job, Message, Sampling, Text
from backends.core.usage import Usage
from gateway.config.snapshot import Snapshot
from gateway.domain.principal import Principal
from gateway.domain.route import Deployment, Route
from gateway.domain.settlement import Reservation, Rule, RuleState, Settlement
from gateway.pipeline.counting import key_of
from gateway.pipeline.house import House, View
from gateway.pipeline.open_requests import OpenRequests
from gateway.pipeline.settler import Settler
from gateway.pipeline.tally import Tally
from gateway.protocols.contract import Call, Options
from gateway.routing.catalog import Catalog


class FakeExchange:
    """Records what the client would get. `on_send` runs at every send."""

    def __init__(self, body: bytes, on_send: Callable[[bytes], None] | None = None) -> None:
        self.path = "/v1/chat/completions"
        self.headers: list[tuple[bytes, bytes]] = [(b"authorization", b"Bearer k")]
        self.response_headers: list[tuple[bytes, bytes]] = []
        self.content_type = b"application/json"
        self.draining = False
        self.sent: list[bytes] = []
        self.finished: bytes | None = None
        self.error: GatewayError | None = None
        self.error_body = b""
        self.comments = 0
        self._body = body
        self._on_send = on_send

    @property
    def started(self) -> bool:
        return bool(self.sent or self.comments)

    def when_gone(self, ends: Callable[[], bool]) -> None:
        self.ends_when_gone = ends

    def header(self, name: bytes) -> str | None:
        return next((value.decode() for key, value in self.headers if key == name), None)

    async def body(self, max_bytes: int) -> bytes:
        return self._body

    async def send(self, data: bytes) -> None:
        if self._on_send is not None:
            self._on_send(data)
        self.sent.append(data)

    async def finish(self, data: bytes) -> None:
        self.finished = data

    def comment(self) -> None:
        self.comments += 1

    async def fail(self, error: GatewayError, body: bytes) -> None:
        self.error = error
        self.error_body = body


class FakeEncoder:
    """Text, and a mark for usage."""

    content_type = "text/event-stream"

    def __init__(self, stream: bool) -> None:
        self._stream = stream
        self._kept: list[bytes] = []

    def feed(self, events: Sequence[Event]) -> bytes:
        out = b"".join(
            event.text.encode() if isinstance(event, TextDelta) else b"<usage>" if isinstance(event, Usage) else b""
            for event in events
        )
        if self._stream:
            return out
        self._kept.append(out)
        return b""

    def close(self) -> bytes:
        return b"".join(self._kept) + b"<end>"


class FakeProtocol:
    """Bodies are JSON: model, text, stream, cap, n."""

    name = "fake"
    id_prefix = "fake-"

    def parse(self, body: bytes) -> Call:
        try:
            asked = json.loads(body)
        except ValueError:
            raise BadRequest("not JSON") from None
        job = GenerationRequest(
            asked["model"],
            messages=(Message("user", (Text(asked.get("text", "hi")),)),),
            sampling=Sampling(max_tokens=asked.get("cap"), top_k=asked.get("top_k")),
            n=asked.get("n", 1),
            stream=asked.get("stream", False),
        )
        options = Options(stream=job.stream, stated_cap="cap" in asked)
        return Call(job, options, text_bytes=len(asked.get("text", "hi")), items=1)

    def encoder(self, call: Call, identity: object) -> FakeEncoder:
        return FakeEncoder(call.options.stream)

    def error(self, error: GatewayError, *, in_stream: bool) -> bytes:
        return f"{'event' if in_stream else 'body'}:{error.code}".encode()


class FakeBackend:
    """Plays batches; an exception in the list is raised, a float is slept. `closed` counts left streams."""

    def __init__(self, *batches: Sequence[Event] | Exception | float) -> None:
        self.batches = batches
        self.jobs: list[Job] = []
        self.closed = 0

    @asynccontextmanager
    async def open(self, job: Job, leaving: object = None) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
        self.jobs.append(job)
        try:
            yield self._play()
        finally:
            self.closed += 1

    async def _play(self) -> AsyncIterator[Sequence[Event]]:
        for batch in self.batches:
            if isinstance(batch, Exception):
                raise batch
            if isinstance(batch, float):
                await asyncio.sleep(batch)
            else:
                yield batch

    async def aclose(self) -> None:
        pass


class FakeStore:
    """Grants everything unless told otherwise."""

    def __init__(self) -> None:
        self.admitted: list[tuple[str, tuple[Rule, ...]]] = []
        self.settled: list[Settlement] = []
        self.voided: list[str] = []
        self.refuse: Callable[[Sequence[Rule]], Exception | None] = lambda rules: None
        self.degraded = False
        self.delay_s = 0.0
        self.waited_us: list[int] = []

    def now_us(self) -> int:
        return 1_800_000_000_000_000

    async def admit(self, id: str, rules: Sequence[Rule], opening: object, lease_ms: int, waited_us: int = 0) -> Reservation:
        self.waited_us.append(waited_us)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if refusal := self.refuse(rules):
            raise refusal
        self.admitted.append((id, tuple(rules)))
        if self.degraded:
            return Reservation(id, 1, tuple(rules), degraded=True)
        return Reservation(id, 1, tuple(rules), tuple(RuleState(rule, rule.limit - rule.cost, 1000) for rule in rules))

    async def renew(self, live: object) -> None:
        pass

    def settle(self, settlement: Settlement) -> asyncio.Future[bool]:
        self.settled.append(settlement)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        future.set_result(True)
        return future

    def written(self) -> None:
        pass

    def void(self, id: str) -> None:
        self.voided.append(id)

    async def aclose(self) -> None:
        pass


class FakeGate:
    """Grants the first deployment at once; counts what is held, and notes how long each would have waited."""

    def __init__(self) -> None:
        self.held = 0
        self.waits_s: list[float] = []
        self.refuse: GatewayError | None = None

    async def acquire(self, request_id: str, fairness_key: str, deployments: Sequence[object], max_wait_s: float) -> FakeSlot:
        self.waits_s.append(max_wait_s)
        if self.refuse is not None:
            raise self.refuse
        self.held += 1
        return FakeSlot(self, deployments[0].id)  # type: ignore[attr-defined]


class FakeSlot:
    """A slot of FakeGate."""

    def __init__(self, gate: FakeGate, deployment: str) -> None:
        self.deployment = deployment
        self._gate: FakeGate | None = gate

    def release(self) -> None:
        if self._gate is not None:
            self._gate.held -= 1
            self._gate = None


class FakeAuth:
    """Everyone is the same principal."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.error: GatewayError | None = None

    async def authenticate(self, headers: object, now_us: int) -> Principal:
        if self.error is not None:
            raise self.error
        return self.principal


class FakeHouse:
    """A house over fakes; `house` is what the pipeline is given."""

    def __init__(
        self,
        tiers: Sequence[Sequence[tuple[Deployment, FakeBackend]]],
        principal: Principal | None = None,
        capabilities: frozenset[str] = frozenset({"chat", "max_tokens", "n"}),
        **route: object,
    ) -> None:
        backends = {deployment.id: backend for tier in tiers for deployment, backend in tier}
        deployments = {deployment.id: deployment for tier in tiers for deployment, _ in tier}
        self.route = Route("m", tuple(tuple(deployment for deployment, _ in tier) for tier in tiers), **route)  # type: ignore[arg-type]
        snapshot = Snapshot("1", {"m": self.route}, deployments, {})
        self.catalog = Catalog(deployments, lambda deployment: (backends[deployment.id], capabilities))
        self.store = FakeStore()
        self.gate = FakeGate()
        self.auth = FakeAuth(principal or Principal("key1"))
        self.seen: list[Tally] = []
        self.signals: list[tuple[str, str]] = []
        self.bugs: list[BaseException] = []
        self.open_requests = OpenRequests()
        self.view = View(snapshot, self.catalog, 1 << 20)
        numbers = itertools.count()
        self.house = House(
            view=lambda: self.view,
            auth=self.auth,
            limits=self.store,
            gate=self.gate,
            settler=Settler(self.store, self.seen.append),
            open_requests=self.open_requests,
            report_bug=lambda _, bug: self.bugs.append(bug),
            mint_id=lambda _: f"id-{next(numbers)}",
            signal=self._signal,
        )

    def count_with(self, counter: object) -> None:
        """Count the route's prompts with this."""
        self.view = View(self.view.snapshot, self.catalog, 1 << 20, counters={key_of(self.route): counter})  # type: ignore[dict-item]

    def _signal(self, near: Sequence[RuleState], shadowed: Sequence[RuleState]) -> None:
        self.signals += [("near", state.rule.name) for state in near]
        self.signals += [("shadow", state.rule.name) for state in shadowed]
