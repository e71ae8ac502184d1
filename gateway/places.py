"""From a deployment of the configuration to the backend that reaches it: a part of the composition root."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import chain

from backends import registry
from backends.core.capabilities import Capabilities
from backends.core.contracts import Backend, Dialect
from backends.core.request import Job
from backends.engines import kinds
from backends.engines.client import EngineClient
from backends.remote.adding import Adding, Headers
from backends.remote.backend import RemoteBackend, Renderer
from backends.remote.batching import Batching
from backends.remote.control import ControlClient
from backends.remote.counted import Untold
from backends.remote.fanout import FanOut
from backends.remote.interpreting import Interpreting, gives
from backends.remote.listing import listed_models
from backends.remote.origin import Credential, Origin, tls_context
from backends.remote.pool import HttpPool
from backends.remote.rendering import ServerRenderer, TemplateRenderer, Tokenise, joined
from backends.remote.repair import GIVES, Repairing
from backends.remote.transport import Timeouts
from backends.templates.families import family
from backends.templates.jinja import ChatTemplate, Segment
from gateway.boot import Boot
from gateway.config.snapshot import EngineSpec
from gateway.domain.route import Deployment, Route
from gateway.pipeline.counting import Tokenizes, load_tokenizer
from gateway.routing.catalog import Place
from gateway.runtime.board import Board, LoadedFirst


class Backends:
    """Makes backends for one worker. Deployments of one engine share its connection."""

    def __init__(self, boot: Boot, worker: str, board: Board, headers: Headers | None = None) -> None:
        """`headers`: what every request to a remote server carries of the moment; None = nothing."""
        self._boot = boot
        self._headers = headers
        self._worker = worker
        self._board = board
        self._engines: dict[str, EngineClient] = {}
        self._specs: dict[str, EngineSpec] = {}
        self._tokenizers: dict[str, Tokenizes] = {}

    def learn(self, engines: dict[str, EngineSpec]) -> None:
        """The engines of the snapshot that is being connected."""
        self._specs = dict(engines)

    def engine(self, name: str) -> EngineClient:
        """The connection to an engine's host."""
        client = self._engines.get(name)
        if client is None:
            socket = str(self._boot.engine_socket(name))
            client = self._engines[name] = EngineClient(socket, self._boot.engine_token, name, worker=self._worker)
        return client

    async def prompt_tokens(self, route: Route, job: Job) -> int | None:
        """What the engines behind a route count in a job's prompts, the most of them; None where one does not say."""
        found: list[int] = []
        for name in sorted({one.engine for tier in route.tiers for one in tier}):
            tokens = await self.engine(name).prompt_tokens(job)
            if tokens is None:
                return None
            found.append(tokens)
        return max(found, default=None)

    def build(self, deployment: Deployment) -> tuple[Backend, Capabilities]:
        """The backend of a deployment and what it can do, the deployment's own corrections included."""
        if deployment.engine:
            spec = self._specs[deployment.engine]
            client = self.engine(deployment.engine)
            can = _corrected(kinds.engine_capabilities(spec.kind, spec.options), deployment)
            loaded = LoadedFirst(client, self._board, deployment.engine)
            read = _interpreted(loaded, deployment, lambda: str(client.describe().get("prompt_tail", "")))
            return _repaired(read, deployment, can)
        return remote(deployment, self._tokenizer, self._headers)

    def _tokenizer(self, path: str) -> Tokenizes:
        """A tokenizer.json, read once."""
        if path not in self._tokenizers:
            self._tokenizers[path] = load_tokenizer(path)
        return self._tokenizers[path]

    async def aclose(self, backends: Iterable[Backend]) -> None:
        """Close remote backends and every engine connection."""
        for backend in backends:
            await backend.aclose()
        for client in self._engines.values():
            await client.aclose()


def remote(
    deployment: Deployment, load: Callable[[str], Tokenizes] = load_tokenizer, headers: Headers | None = None
) -> tuple[Backend, Capabilities]:
    """The backend of a remote deployment and what it can do, the deployment's own corrections included.

    `load`: reads the tokenizer of a model whose server does not count. `headers`: see `Backends`.
    """
    dialect = registry.dialect(deployment.dialect, deployment.quirks, deployment.options)
    transport = _transport(deployment)
    limits = deployment.timeouts
    timeouts = Timeouts(connect_s=limits.connect_s, idle_s=limits.idle_s, total_s=limits.total_s)
    can = _corrected(dialect.capabilities, deployment)
    template = ChatTemplate(deployment.template, eos_token=deployment.template_eos) if deployment.template else None
    inner: Backend = RemoteBackend(
        dialect,
        transport if headers is None else Adding(transport, headers),
        capabilities=can,
        params=deployment.params,
        timeouts=timeouts,
        render=_renderer(dialect, template, transport, timeouts, _tokenise(dialect, deployment)),
        stops=deployment.template_stops,
        untold=_untold(deployment, load),
    )
    if size := registry.batch(dialect):
        inner = Batching(inner, size)
    if "n" not in can:
        inner, can = FanOut(inner), can | {"n"}
    tail = template.tail if template is not None else ""
    return _repaired(_interpreted(inner, deployment, lambda: tail), deployment, can)


def _untold(deployment: Deployment, load: Callable[[str], Tokenizes]) -> Untold | None:
    """How to count what the server does not tell, where it tells less than all and its model's tokenizer is known."""
    tells = registry.tells(deployment.dialect, deployment.quirks)
    if not deployment.tokenizer or len(tells) == 2:
        return None
    tokenizer = load(deployment.tokenizer)
    includes = registry.cap_includes_prompt(deployment.dialect)
    return Untold(
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        "reason" not in tells,
        (lambda text: len(tokenizer.encode(text, add_special_tokens=True))) if includes else None,
    )


def _transport(deployment: Deployment) -> HttpPool:
    return HttpPool(
        Origin.parse(deployment.base_url),
        credential=_credential(deployment),
        tls=None if deployment.verify_tls else tls_context(verify=False),
        keepalive_s=deployment.keepalive_s,
    )


async def models_of(deployment: Deployment) -> list[str] | None:
    """The models that a deployment's server lists; None where its dialect knows no list.

    Raises:
        BackendError: the list cannot be had, or is none.
    """
    listing = registry.model_list(deployment.dialect)
    if listing is None:
        return None
    async with aclosing(control(deployment)) as client:
        return await listed_models(client, listing)


def control(deployment: Deployment) -> ControlClient:
    """A client for what is asked of a deployment's server outside any job; the caller closes it."""
    return ControlClient(
        Origin.parse(deployment.base_url),
        credential=_credential(deployment),
        tls=None if deployment.verify_tls else tls_context(verify=False),
        timeout_s=deployment.timeouts.connect_s + 5,
    )


def _credential(deployment: Deployment) -> Credential | None:
    header = registry.credential_header(deployment.dialect)
    return Credential(deployment.credential, header) if deployment.credential else None


def _corrected(can: Capabilities, deployment: Deployment) -> Capabilities:
    """With what reading its text gives, and the deployment's own corrections."""
    return (can | gives(can, registry.tool_syntax(deployment.tools)) | deployment.adds) - deployment.lacks


def _interpreted(inner: Backend, deployment: Deployment, tail: Callable[[], str]) -> Backend:
    """With its text read for tool calls and thoughts, where the configuration says in whose way. `tail`: the prompt's end."""
    syntax, tags = registry.tool_syntax(deployment.tools), registry.think_tags(deployment.thinking)
    if syntax is None and tags is None:
        return inner
    begin = tags.begin if tags is not None else ""

    def opened() -> bool:
        return bool(begin) and tail().rstrip().endswith(begin)

    return Interpreting(inner, syntax=syntax, tags=tags, opened=opened)


def _repaired(inner: Backend, deployment: Deployment, can: Capabilities) -> tuple[Backend, Capabilities]:
    """With JSON forms of the answer that are checked here, where the configuration allows a second call."""
    if not deployment.repair or can >= GIVES:
        return inner, can
    return Repairing(inner, can), can | GIVES


def _tokenise(dialect: Dialect, deployment: Deployment) -> Tokenise | None:
    """Prompts as token ids, where the server takes them and the model's tokenizer is known."""
    if not (dialect.needs_prompt and deployment.tokenizer and "token_input" in dialect.capabilities):
        return None
    parsing, plain = load_tokenizer(deployment.tokenizer), load_tokenizer(deployment.tokenizer)
    plain.encode_special_tokens = True
    before = tuple(parsing.encode("", add_special_tokens=True).ids)

    def ids(pieces: Sequence[Segment]) -> tuple[int, ...]:
        begin = before if len(before) == 1 else ()  # the BOS that a server adds to text
        found = [(parsing if one.trusted else plain).encode(one.text, add_special_tokens=False).ids for one in joined(pieces)]
        return (*begin, *chain.from_iterable(found))

    return ids


def _renderer(
    dialect: Dialect, template: ChatTemplate | None, transport: HttpPool, timeouts: Timeouts, tokenise: Tokenise | None
) -> Renderer | None:
    """How the dialect's prompts are rendered; None for dialects that take messages."""
    if not dialect.needs_prompt:
        return None
    server = registry.prompt_server(dialect.name)
    if server is not None:
        return ServerRenderer(server, dialect, transport, timeouts, template)
    return TemplateRenderer(template or ChatTemplate(family("chatml").template), tokenise)


def template_source(deployment: Deployment) -> str:
    """Whose chat template renders a remote deployment's conversations."""
    dialect = registry.dialect(deployment.dialect, deployment.quirks, deployment.options)
    return registry.template_source(dialect, own=bool(deployment.template))


class Retired:
    """Places that a reload took out of use, until no request can reach them any more.

    A request keeps the configuration that it began with, and may come to its place late: after its body, after a wait
    for a slot. So a place is done with when all that were open at the reload have ended, busy at that moment or not.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Place, frozenset[object]]] = []

    @property
    def places(self) -> list[Place]:
        """Those not yet handed out by `due`."""
        return [place for place, _ in self._waiting]

    def add(self, places: Iterable[Place], present: Iterable[object]) -> None:
        """Take places that only the requests in `present` may still use."""
        users = frozenset(present)
        self._waiting += [(place, users) for place in places]

    def due(self, present: Iterable[object]) -> list[Place]:
        """The places that nobody of `present` can use: to be closed by the caller, told once."""
        here = frozenset(present)
        due = [place for place, users in self._waiting if users.isdisjoint(here) and not place.busy]
        self._waiting = [(place, users & here) for place, users in self._waiting if place not in due]
        return due
