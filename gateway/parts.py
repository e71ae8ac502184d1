"""The parts of one worker, built after the fork and wired to each other: the composition root of what serves."""

from __future__ import annotations

import asyncio
import random
import secrets
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import Backend
from backends.core.errors import GatewayError
from gateway import figures
from gateway.accounting import Accounting
from gateway.admin.caller import AdminParts
from gateway.admin.surface import admin_routers
from gateway.auth.authenticate import Authenticator
from gateway.auth.database import Database
from gateway.auth.keystore import KeyStore
from gateway.auth.overlay import in_file
from gateway.auth.owners import OwnerStore
from gateway.auth.prices import PriceStore
from gateway.boot import Boot, kept_audit
from gateway.config.certificates import Certificate
from gateway.config.loader import parse
from gateway.config.problems import ConfigError, Problem
from gateway.config.settings import Configuration
from gateway.domain.ids import uuid7
from gateway.domain.route import Deployment
from gateway.domain.settlement import RuleState
from gateway.edge.asgi import EdgeApp
from gateway.edge.renewal import Renewing
from gateway.edge.web import VERSION, WebParts, web_app
from gateway.gate.client import GateClient
from gateway.gate.local import LocalGate
from gateway.ledger.queries import keep_retention, kept_rows
from gateway.ledger.rows import connect
from gateway.limits.flights import NoRecord
from gateway.limits.plans import Plans
from gateway.limits.redis_store import RedisStore
from gateway.limits.signals import labels
from gateway.pipeline.clock import monotonic_us, wall_us
from gateway.pipeline.counting import Counter, load_counters, load_tokenizer
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.house import House, View
from gateway.pipeline.open_requests import OpenRequests
from gateway.pipeline.serve import serve
from gateway.pipeline.settler import Settler
from gateway.pipeline.tally import Tally
from gateway.places import Backends, Retired
from gateway.protocols.contract import ClientProtocol
from gateway.routing.catalog import Catalog, Place
from gateway.runtime.board import Board
from gateway.runtime.gate_role import export_alone
from gateway.telemetry import families
from gateway.telemetry.aggregate import pack
from gateway.telemetry.deferred import Deferred
from gateway.telemetry.exporter import scrape
from gateway.telemetry.logs import RequestLog
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.sink import Sink, timestamp
from gateway.tracing import TracedGate, TracedLimits, outgoing, tracing_of

RENEW_S = 5.0
KEEP_ALIVE_S = 0.5
PROBE_S = 1.0


class Parts:
    """One worker's parts: `start`, serve `app` while `background` runs, `aclose`."""

    def __init__(self, boot: Boot, index: int, incarnation: int, sink: Sink, board: Board) -> None:
        self.boot = boot
        self.sink = sink
        self.board = board
        self.metrics = Metrics()
        self.open_requests = OpenRequests()
        self.accepting = False
        self._index = index
        self._not_ready = {f"engine {name}": "loading" for name in boot.configuration.snapshot.engines}
        self._cut = False
        dice = random.Random(secrets.randbits(256))  # noqa: S311  # ids must be unique, not secret; seeded after the fork
        self._tracing = tracing_of(boot, f"{boot.gateway}-{index}", dice)
        self._backends = Backends(boot, f"worker-{index}", board, outgoing if self._tracing is not None else None)
        self._retired = Retired()
        self._counters: dict[str, Counter] = {}
        self._view = self._connect(boot.configuration, None)
        self._shown: tuple[View, View] | None = None
        self._accounts = Database(boot.configuration.ledger_url)
        self._keys = KeyStore(self._accounts)
        self._reports = connect(boot.configuration.ledger_url)
        self.auth = Authenticator(
            lambda: self._view.snapshot, self._keys, boot.pepper, anonymous=boot.configuration.static.auth.mode == "none"
        )
        self.gate: LocalGate | GateClient = (
            GateClient(boot.gate_socket, index, incarnation, self.samples)
            if boot.gated
            else LocalGate(boot.configuration.static.server.queue_length)
        )
        self.certificate = self._certificate()
        self._request_log = RequestLog(sink)
        self._log_requests = boot.log_style.wants("info")

        def mint_id(now_us: int) -> str:
            return uuid7(now_us // 1000, dice.getrandbits(80))

        self._accounting = Accounting(boot, index, incarnation, sink)
        self.limits = self._accounting.limits
        self._ended = Deferred(self._observe)
        self.metrics.before_dump(self._ended.flush)
        self.settler = Settler(self.limits, self._ended.add)
        house = House(
            view=self._present,
            auth=self.auth,
            limits=self.limits if self._tracing is None else TracedLimits(self.limits),
            gate=self.gate if self._tracing is None else TracedGate(self.gate),
            settler=self.settler,
            open_requests=self.open_requests,
            report_bug=self._report_bug,
            mint_id=mint_id if self._tracing is None else self._tracing.minted(mint_id),
            plans=Plans(boot.configuration.static.redis.on_outage),
            signal=self._signal,
            flights=self._accounting.flights or NoRecord(),
        )
        web = web_app(self._web())

        def answer(exchange: Exchange, protocol: ClientProtocol) -> Awaitable[None]:
            return serve(exchange, protocol, house)

        self.app = EdgeApp(
            serve=answer if self._tracing is None else self._tracing.served(answer),
            web=web,
            mint_id=lambda: mint_id(wall_us()),
            cors_origins=boot.configuration.static.server.cors_origins,
            draining=lambda: self._cut,
        )

    async def start(self) -> None:
        """Open what needs a running loop. Call `aclose` in the same task."""
        await self.auth.refresh()  # no request may be priced or limited by the file alone
        await self._accounting.start(self.auth.snapshot)
        figures.read_process(self.metrics, VERSION)
        figures.read_limits(self.metrics, self.limits, self._accounting.ledger)
        figures.read_places(self.metrics, self._places)
        figures.read_engines(self.metrics, lambda: self.board.states)
        self.metrics.read(families.OPEN_STREAMS, lambda: len(self.open_requests))
        self.metrics.read(families.LOG_DROPPED, lambda: self.sink.dropped)
        self.metrics.read(families.WORKERS_READY, lambda: not self.not_ready())
        self.metrics.set(families.CONFIG_LOADED, wall_us() / 1e6)
        self.metrics.set(families.CONFIG_FAILED, 0.0)

    @property
    def background(self) -> list[Callable[[], Coroutine[Any, Any, object]]]:
        """What runs beside the requests until the worker ends."""
        metrics_address = self.boot.configuration.static.telemetry.metrics.address
        work: list[Callable[[], Coroutine[Any, Any, object]]] = [self.auth.watch, self._renew, self._tend, self._await_engines]
        work.append(self.settler.run)
        work.append(lambda: figures.tick(self.metrics))
        if self._index == 0:
            work.append(self._looking().run)
        if self.certificate is not None:
            work.append(self.certificate.watch)
        if self._accounting.ledger is not None:
            days = self.boot.configuration.static.ledger
            kept = (kept_rows(days.retain_days), kept_audit(days.retain_audit_days))
            work.append(lambda: keep_retention(self.boot.configuration.ledger_url, kept, wall_us))
        if isinstance(self.gate, GateClient):
            work.append(self.gate.run)  # the gate process serves the sum of all workers' metrics
        else:
            stats = self.gate.stats
            work.append(lambda: export_alone(self.metrics, stats, metrics_address, self.sink))
        return work

    async def aclose(self) -> None:
        """Flush and close everything; no request is open any more."""
        self.settler.flush()
        self._ended.flush()
        await self._accounting.aclose()
        await self._backends.aclose([place.backend for place in (*self._view.catalog.places.values(), *self._retired.places)])
        await self._keys.aclose()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        await self._reports.dispose()

    def reload(self, configuration: Configuration) -> None:
        """Serve new requests by another configuration; open ones go on with theirs."""
        self._view = self._connect(configuration, self._view.catalog)

    def heed(self, data: bytes) -> None:
        """A configuration file that the supervisor has checked."""
        file = self.boot.configuration.file
        assert file is not None
        try:
            self.reload(parse(data, file))
        except ConfigError as error:  # checked a moment ago in another process: a secret's file may have gone since
            self.refused(str(error))
            return
        self.metrics.set(families.CONFIG_FAILED, 0.0)
        self.metrics.set(families.CONFIG_LOADED, wall_us() / 1e6)
        self.sink.event("config_reloaded", version=self._view.snapshot.version)

    def refused(self, reason: str) -> None:
        """The file on disk may not be used: the present configuration stays."""
        self.metrics.set(families.CONFIG_FAILED, 1.0)
        self.sink.event("config_refused", reason=reason, version=self._view.snapshot.version)

    def not_ready(self) -> Mapping[str, str]:
        """Why this worker should get no traffic, by part."""
        reasons = dict(self._not_ready)
        if not self.accepting:
            reasons["gateway"] = "starting or draining"
        if not self.auth.knows_database:
            reasons["accounts"] = "not read yet"
        failed = self.board.failed()
        if failed and all(place.deployment.engine in failed for place in self._places()):
            reasons["engines"] = "every engine has failed"
        if isinstance(self.limits, RedisStore) and not self.limits.ready:
            reasons["limits"] = "settlements cannot be kept"
        if isinstance(self.limits, RedisStore) and self.limits.rebuilding:
            reasons["quotas"] = "being rebuilt from the ledger"
        if self._accounting.ledger is not None and not self._accounting.ledger.ready:
            reasons["ledger"] = "requests cannot be recorded"
        return reasons

    def cut(self, reason: GatewayError) -> None:
        """The drain time is over: end every open request with this error."""
        self._cut = True
        self.gate.stop()  # first: a slot that a cut stream frees would reach a request that is about to be cut
        self.open_requests.interrupt(reason)

    def samples(self) -> bytes:
        """This worker's metrics for whoever sums them."""
        return pack(self.metrics.dump())

    def _present(self) -> View:
        """The view of a request that begins now: the configuration's, with what the database adds to its snapshot."""
        snapshot = self.auth.snapshot()
        if self._shown is None or self._shown[0] is not self._view or self._shown[1].snapshot is not snapshot:
            self._shown = (self._view, msgspec.structs.replace(self._view, snapshot=snapshot))
        return self._shown[1]

    def _connect(self, configuration: Configuration, before: Catalog | None) -> View:
        snapshot = configuration.snapshot
        try:  # first: what can fail must leave the present view whole
            self._counters = load_counters(snapshot.models.values(), load_tokenizer, self._counters)
        except Exception as error:  # tokenizers raises nothing narrower
            file = str(configuration.file or "")
            raise ConfigError([Problem(file, "models", f"a tokenizer: {error}", "check tokenizer.file")]) from error
        self._backends.learn(snapshot.engines)
        catalog = Catalog(snapshot.deployments, self._build, before)
        self._retired.add(catalog.retired, self.open_requests.present())
        figures.prepare(self.metrics, snapshot)
        server = configuration.static.server
        ask = self._backends.prompt_tokens
        return View(snapshot, catalog, server.max_body_mb << 20, server.queue_wait_s, self._counters, ask)

    def _web(self) -> WebParts:
        admin = AdminParts(
            auth=self.auth,
            database=self._accounts,
            keys=self._keys,
            owners=OwnerStore(self._accounts, lambda kind, name: in_file(self._view.snapshot, kind, name)),
            prices=PriceStore(self._accounts),
            pepper=self.boot.pepper,
            now_us=wall_us,
            snapshot=lambda: self._view.snapshot,
            present=self.auth.snapshot,
            peek=self.limits.peek,
            store_now_us=self.limits.now_us,
        )
        token = self.boot.configuration.static.telemetry.metrics.token
        return WebParts(
            auth=self.auth,
            now_us=wall_us,
            snapshot=lambda: self._view.snapshot,
            not_ready=self.not_ready,
            failed_engines=self.board.failed,
            metrics=self._all_metrics,
            metrics_token=token.get_secret_value() if token else "",
            routers=admin_routers(admin, self._reports, self.board),
        )

    def _build(self, deployment: Deployment) -> tuple[Backend, Capabilities]:
        build = self._backends.build
        return (build if self._tracing is None else self._tracing.built(build))(deployment)

    def _certificate(self) -> Renewing | None:
        files = self.boot.configuration.certificate_files
        if files is None:
            return None

        def taken(certificate: Certificate) -> None:
            self.metrics.set(families.CERTIFICATE_ENDS, certificate.ends_s)
            self.sink.event("certificate_taken", ends=timestamp(certificate.ends_s * 1_000_000))

        return Renewing(*files, taken, lambda reason: self.sink.event("certificate_refused", level="error", reason=reason))

    def _places(self) -> Iterable[Place]:
        return self._view.catalog.places.values()

    def _looking(self) -> figures.Looking:
        """Engines are started once, so those of now are those of always."""
        engines = {name: self._backends.engine(name) for name in self._view.snapshot.engines}
        stream = self.limits.stream if isinstance(self.limits, RedisStore) else None
        return figures.Looking(self.metrics, engines, stream, self.limits.now_us)

    async def _all_metrics(self) -> bytes:
        """The sum of all workers, as the metrics port shows it."""
        return await scrape(*self.boot.configuration.static.telemetry.metrics.address)

    def _observe(self, tally: Tally) -> None:
        self.metrics.observe(tally)
        if tally.error is not None:
            figures.count_refusal(self.metrics, tally)
        trace_id = "" if self._tracing is None else self._tracing.observe(tally)
        if self._log_requests:
            self._request_log.observe(tally, tally.began_wall_us + tally.ended_us - tally.began_us, trace_id)

    def _signal(self, close: Sequence[RuleState], over: Sequence[RuleState]) -> None:
        for state in close:
            self.metrics.add(families.LIMIT_NEAR, *labels(state))
        for state in over:
            self.metrics.add(families.LIMIT_SHADOW, *labels(state))

    def _report_bug(self, id: str, bug: BaseException) -> None:
        self.sink.event("bug", request_id=id, error=repr(bug), trace="".join(traceback.format_exception(bug))[-4000:])

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            if isinstance(self.limits, RedisStore):
                self.limits.acknowledge()
            if live := self.open_requests.progress():
                await self.limits.renew(live)

    async def _tend(self) -> None:
        """Twice a second: comments into silent streams, and the end of places that a reload retired."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            self.open_requests.keep_alive(monotonic_us(), lambda one: bool(one.engine) and self.board.loading(one.engine))
            for place in self._retired.due(self.open_requests.present()):
                if not place.deployment.engine:
                    await place.backend.aclose()

    async def _await_engines(self) -> None:
        """Not ready until every engine that loads at the start has loaded, or failed to; then the welcome."""
        while waiting := self.board.starting():
            self._not_ready = {f"engine {name}": "loading" for name in waiting}
            await self.board.change(PROBE_S)
        self._not_ready = {}
        if self.boot.welcome:
            print(self.boot.welcome, flush=True)  # noqa: T201  # the one thing a first start says to a person
