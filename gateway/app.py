"""The composition root: from a configuration to a running tree of processes. The one file that knows every part."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.core.errors import Draining
from backends.engines import kinds
from backends.engines.launch import EngineLaunch
from gateway.auth.declared import tell_declared
from gateway.auth.keys import WeakPepper, check_pepper
from gateway.auth.keystore import NewKey, create_key, list_keys
from gateway.auth.overlay import clashes, overlaid
from gateway.auth.owners import owner_names
from gateway.auth.pepper import load_or_create_pepper
from gateway.auth.prices import follow_prices
from gateway.auth.records import PriceRecord
from gateway.boot import Boot, kept_audit, log_style
from gateway.config.folders import make_private
from gateway.config.loader import parse, restart_needed
from gateway.config.model_files import weights_mb
from gateway.config.problems import ConfigError, Problem
from gateway.config.settings import Configuration
from gateway.config.snapshot import EngineSpec, Snapshot
from gateway.config.templates import sources, try_templates
from gateway.config.welcome import greeting, welcome
from gateway.domain.engines import EngineKeep
from gateway.domain.money import cost_of_row
from gateway.domain.settlement import LedgerRow
from gateway.edge.limits import Limits
from gateway.edge.protocol import EdgeProtocol
from gateway.ledger.migrations import UnsupportedDatabase, migrate, sync_url
from gateway.ledger.queries import keep_retention
from gateway.ledger.writer import run_ledger
from gateway.limits.suitability import examined
from gateway.limits.sweeper import keep_landed, keep_swept
from gateway.parts import Parts
from gateway.pipeline.clock import wall_us
from gateway.rebuilding import restore
from gateway.runtime.board import Board
from gateway.runtime.drain import DrainTimes
from gateway.runtime.engine_keeper import EngineKeeper
from gateway.runtime.gate_role import run_gate
from gateway.runtime.lifecycle import Lifecycle
from gateway.runtime.line import Line, run_async
from gateway.runtime.ports import PortTaken, own_port
from gateway.runtime.roles import Child, ForkRole
from gateway.runtime.supervisor import Reload, Supervisor
from gateway.runtime.worker import WorkerParts, run_worker
from gateway.telemetry.bridge import attach
from gateway.telemetry.sink import DirectSink, Sink


def serve(configuration: Configuration) -> int:
    """Run the gateway until it is told to stop; returns the exit status."""
    log = DirectSink(style=log_style(configuration))
    if configuration.redis_url is not None:
        for finding in examined(configuration.redis_url):
            if finding.severity == "error":
                sys.stderr.write(f"switchyard: redis.url: {finding.message}\n")
                return 1
            log.event("redis_unwise", reason=finding.message)
    make_private(configuration.state_dir, "state_dir")
    make_private(configuration.run_dir, "server.run_dir")
    try:
        host, port = configuration.static.server.address
        owner = own_port(host, port)
        boot = _boot(configuration, owner)
    except SQLAlchemyError as error:
        # A driver's own words may hold the database's address.
        sys.stderr.write(f"switchyard: ledger.url: the database cannot be used: {type(error).__name__}\n")
        return 1
    except (PortTaken, WeakPepper, UnsupportedDatabase) as error:
        sys.stderr.write(f"switchyard: {error}\n")
        return 1
    server = configuration.static.server
    times = DrainTimes(delay_s=server.drain_delay_s, drain_s=server.drain_s)
    reload = None
    if configuration.file is not None:
        reload = Reload(path=configuration.file, check=partial(_check, configuration, log))
    roles: list[ForkRole] = []
    if boot.gated:
        roles.append(_gate(boot, log))
    if configuration.redis_url is not None:
        roles.append(ForkRole(name="ledger", run=partial(_ledger, configuration, log)))
    for index in range(server.workers):
        run = partial(_worker, boot, owner, times, index)
        roles.append(ForkRole(name=f"worker-{index}", run=run, stage="requests"))
    engines = _engines(boot, log)
    return Supervisor(roles, log, engines=engines, requests_s=times.longest_s + 2, reload=reload).run()


def _boot(configuration: Configuration, owner: socket.socket) -> Boot:
    """Everything that is decided before a process is started: the schema, the pepper, the first keys."""
    migrate(configuration.ledger_url)
    _no_clash(configuration, configuration.snapshot)
    stated = configuration.static.auth.pepper
    if stated is not None:
        pepper = check_pepper(stated.get_secret_value().encode())
    else:
        pepper = load_or_create_pepper(configuration.state_dir / "pepper")
    name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    return Boot(configuration, name, pepper, secrets.token_hex(32), asyncio.run(_welcome(configuration, pepper, owner)))


def _no_clash(configuration: Configuration, snapshot: Snapshot) -> None:
    """One name, one meaning.

    Raises:
        ConfigError: the file declares what the database has too.
        SQLAlchemyError: the database does not answer.
    """
    found = clashes(snapshot, owner_names(sync_url(configuration.ledger_url)))
    file = str(configuration.file or "")
    mend = "rename it in the file, or delete the other: switchyard {0} delete {1}"
    section = {"organisation": ("organisations", "orgs"), "team": ("teams", "teams"), "user": ("users.named", "users")}
    problems = [
        Problem(
            file,
            f"{section[kind][0]}.{name}",
            f"the database has a {kind} of this name too",
            mend.format(section[kind][1], name),
        )
        for kind, name in found
    ]
    if problems:
        raise ConfigError(problems)


async def _welcome(configuration: Configuration, pepper: bytes, owner: socket.socket) -> str:
    """What a person is told. The embedded default mints its first two keys when there is none."""
    host, port = owner.getsockname()[:2]
    base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    if configuration.file is not None:
        return ""
    if await list_keys(configuration.ledger_url):
        return greeting(base_url)
    scopes = frozenset({"inference", "admin"})
    admin = await create_key(configuration.ledger_url, pepper, NewKey("admin", scopes=scopes))
    user = await create_key(configuration.ledger_url, pepper, NewKey("user"))
    return welcome(base_url, admin.secret, user.secret)


def _engines(boot: Boot, log: DirectSink) -> EngineKeeper:
    """The keeper of the local engines' host processes."""
    specs = boot.configuration.snapshot.engines.values()
    lifecycle = Lifecycle(map(_keep, specs), boot.configuration.static.server.engine_memory_mb)
    return EngineKeeper([_launch(boot, spec) for spec in specs], lifecycle, log)


def _keep(spec: EngineSpec) -> EngineKeep:
    """Where the configuration states no memory: the weights and a fifth more for caches, until a loaded process tells."""
    if spec.keep.memory_mb:
        return spec.keep
    return msgspec.structs.replace(spec.keep, memory_mb=max(1, weights_mb(Path(spec.model)) * 6 // 5))


def _launch(boot: Boot, spec: EngineSpec) -> EngineLaunch:
    """How the host process of a local engine is started."""
    return EngineLaunch(
        name=spec.name,
        kind=spec.kind,
        engine=kinds.ENGINES[spec.kind],
        model=spec.model,
        socket=str(boot.engine_socket(spec.name)),
        token=boot.engine_token,
        slots=spec.slots,
        context=spec.context,
        queue=spec.queue,
        options=spec.options,
        python=spec.python,
        environment=spec.environment,
        memory_limit_mb=spec.memory_limit_mb,
    )


def _check(running: Configuration, log: DirectSink, data: bytes) -> None:
    """Whether a changed file may be used. Changed static keys wait for the next start, and the log says so.

    Raises:
        ConfigError: it has a mistake, changes the engines, which are started once, or declares what the database has too.
    """
    assert running.file is not None
    found = parse(data, running.file)
    if found.snapshot.engines != running.snapshot.engines:
        file = str(running.file)
        raise ConfigError([Problem(file, "engines", "engines changed, and they are started only once", "restart the gateway")])
    try_templates(found.snapshot, running.file, {source for _, source in sources(running.snapshot)})
    try:
        _no_clash(running, found.snapshot)
    except SQLAlchemyError as error:  # a configuration can be mended while the database is out; the file's names win
        log.event("config_names_unchecked", reason=type(error).__name__)
    if waiting := restart_needed(running.static, found.static):
        log.event("config_needs_restart", keys=waiting)


def _gate(boot: Boot, log: DirectSink) -> ForkRole:
    configuration = boot.configuration
    run = partial(
        run_gate,
        path=boot.gate_socket,
        workers=configuration.static.server.workers,
        max_waiting=configuration.static.server.queue_length,
        metrics=configuration.static.telemetry.metrics.address,
        log=log,
    )
    return ForkRole(name="gate", run=run)


def _ledger(configuration: Configuration, log: DirectSink, child: Child) -> int:
    """The ledger writer's process. It also settles what vanished workers left behind."""
    assert configuration.redis_url is not None
    redis_url = configuration.redis_url
    file = configuration.file
    snapshot = configuration.snapshot
    prices: tuple[PriceRecord, ...] = ()

    def reloaded(data: bytes) -> None:
        nonlocal snapshot
        assert file is not None
        with suppress(ConfigError):  # the workers tell of it
            snapshot = parse(data, file).snapshot

    def cost_of(row: LedgerRow) -> int:
        return cost_of_row(row, overlaid(snapshot, (), prices).models.get(row.model))

    def priced(found: tuple[PriceRecord, ...]) -> None:
        nonlocal prices
        prices = found

    async def restoring(client: Redis, ledger: AsyncEngine) -> None:
        await restore(client, ledger, configuration.ledger_url, lambda: snapshot, wall_us)

    async def main(line: Line) -> None:
        attach(log, log_style(configuration))
        line.listen(reloaded, lambda _: None)
        line.ready()
        days = configuration.static.ledger
        kept = [kept_audit(days.retain_audit_days)]
        async with asyncio.TaskGroup() as group:
            client = Redis.from_url(redis_url, socket_timeout=5.0, socket_connect_timeout=2.0)
            name = f"sweeper-{child.boot}"
            sweeping = group.create_task(keep_swept(client, name=name, cost_of=cost_of))
            landing = group.create_task(keep_landed(client, configuration.run_dir, name=name, cost_of=cost_of))
            pricing = group.create_task(follow_prices(configuration.ledger_url, priced))
            telling = group.create_task(tell_declared(configuration.ledger_url, lambda: snapshot))
            cleaning = group.create_task(keep_retention(configuration.ledger_url, kept, wall_us))
            try:
                await run_ledger(redis_url, configuration.ledger_url, days.retain_days, line.draining, restore=restoring)
            finally:
                for task in (sweeping, landing, pricing, telling, cleaning):
                    task.cancel()
        await client.aclose()

    return run_async(child, main)


def _worker(boot: Boot, owner: socket.socket, times: DrainTimes, index: int, child: Child) -> int:
    """A worker's process."""
    server = boot.configuration.static.server
    limits = Limits(
        max_header_fields=server.max_header_fields,
        max_head_bytes=server.max_head_kb << 10,
        head_s=server.head_timeout_s,
        body_s=server.body_timeout_s,
        keepalive_s=server.keepalive_s,
        client_stall_s=server.client_stall_s,
    )

    @asynccontextmanager
    async def build(line: Line) -> AsyncIterator[WorkerParts]:
        sink = Sink(style=boot.log_style)
        attach(sink, boot.log_style)
        board = Board(line.say)
        line.watch_engines(board.learn)
        parts = Parts(boot, index, line.child.boot, sink, board)
        await parts.start()
        try:
            yield WorkerParts(
                app=parts.app,
                protocol_class=type("Protocol", (EdgeProtocol,), {"limits": limits}),
                set_ready=partial(setattr, parts, "accepting"),
                open_requests=lambda: len(parts.open_requests),
                cut=lambda: parts.cut(Draining("The gateway is shutting down.", retry_after_ms=1000)),
                background=parts.background,
                tls=parts.certificate.context if parts.certificate is not None else None,
                on_config=parts.heed,
                on_refused=parts.refused,
            )
        finally:
            await parts.aclose()
            sink.close()

    return run_worker(child, owner, times, build)
