"""`switchyard doctor`: really call each remote deployment, and compare what it does with what the configuration claims.

It speaks through the same backends that serve requests. Each probe costs a few tokens of the deployment's model. A local
engine belongs to a running gateway, whose readiness tells of it; it is not probed here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType

import msgspec

from backends.core.capabilities import Capabilities
from backends.core.contracts import Backend
from backends.core.errors import (
    BackendError,
    GatewayError,
    UpstreamProtocol,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from backends.core.events import TextDelta
from backends.core.fold import Answer, Fold
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    Job,
    Message,
    Output,
    Prompt,
    RerankRequest,
    Sampling,
    Text,
    Tool,
    ToolChoice,
)
from gateway.domain.route import Deployment, Route
from gateway.inspection import inspect
from gateway.limits.rules import Demand
from gateway.pipeline.estimate import output_cap
from gateway.places import control, models_of, remote, template_source

#: Output cap of every probe, in tokens.
CAP = 64
_SMALL_CAP = 8
_COUNT = "Count from one to twenty in words."
#: What the short question of a probe takes at most, with what a template adds.
_PROMPT_TOKENS = 64
_SCHEMA = b'{"type":"object","properties":{"colour":{"type":"string"}},"required":["colour"],"additionalProperties":false}'
_TOOL = Tool(
    "get_weather",
    "The weather of a city, now.",
    msgspec.Raw(b'{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'),
)


class Report(msgspec.Struct):
    """What one deployment did. Each answer is `yes`, `no`, a word more, or `-` where nothing is claimed or known.

    `findings`: what it claims and does not do, or why it could not be asked. `first_token_ms`: None = it gave none.
    """

    deployment: str
    reachable: str = "-"
    models: str = "-"
    streaming: str = "-"
    usage: str = "-"
    tools: str = "-"
    schema: str = "-"
    logprobs: str = "-"
    template: str = "-"
    server: str = "-"
    first_token_ms: int | None = None
    findings: list[str] = []

    @property
    def well(self) -> bool:
        """Whether nothing is to be mended."""
        return not self.findings


async def examine(
    deployments: Sequence[Deployment], timeout_s: float, caps: Mapping[str, ChosenCap] = MappingProxyType({})
) -> list[Report]:
    """A report on each, one after the other. `timeout_s` bounds each probe, `caps` are `chosen_caps`."""
    return [await _Examination(one, timeout_s, caps.get(one.id)).run() for one in deployments]


class ChosenCap(msgspec.Struct, frozen=True):
    """The output cap that a request without one is sent with, where a limit applies: tokens, and the model it is of."""

    model: str
    tokens: int


def chosen_caps(routes: Iterable[Route]) -> dict[str, ChosenCap]:
    """The largest cap that the gateway chooses for each deployment, by its id."""
    found: dict[str, ChosenCap] = {}
    for route in routes:
        cap = output_cap(route.default_output_tokens, route.context, Demand(_PROMPT_TOKENS), ())
        for tier in route.tiers:
            for one in tier:
                if one.id not in found or found[one.id].tokens < cap:
                    found[one.id] = ChosenCap(route.name, cap)
    return found


class _Probe(msgspec.Struct):
    """What one job brought."""

    answer: Answer
    deltas: int
    first_ms: int | None


class _Examination:
    def __init__(self, deployment: Deployment, timeout_s: float, chosen: ChosenCap | None = None) -> None:
        self._deployment = deployment
        self._chosen = chosen
        self._timeout_s = timeout_s
        self._said = ""
        self._report = Report(deployment.id, findings=[])

    async def run(self) -> Report:
        report, deployment = self._report, self._deployment
        if deployment.engine:
            report.reachable = "local engine"
            return report
        backend, can = remote(deployment)
        async with aclosing(backend):
            if "chat" in can:
                await self._conversation(backend, can)
            elif "embeddings" in can:
                await self._embedding(backend)
            elif "rerank" in can:
                await self._rerank(backend)
        if report.reachable == "no" and await self._answers():
            report.reachable = "yes"
            self._finds("it answers, but not as its dialect says: is the dialect, or the path of base_url, another one?")
        elif report.reachable == "yes":
            report.server, findings = await inspect(deployment, self._timeout_s)
            report.findings += findings
        return report

    async def _answers(self) -> bool:
        """Whether anything answers at the address, whatever it says."""
        try:
            async with asyncio.timeout(self._timeout_s), aclosing(control(self._deployment)) as client:
                await client.get("/")
        except UpstreamProtocol:
            return True  # a redirect, such as to a page for people
        except (GatewayError, TimeoutError):
            return False
        return True

    async def _conversation(self, backend: Backend, can: Capabilities) -> None:
        report = self._report
        whole = await self._ask(backend, self._job("Say hello.", can, cap=_SMALL_CAP), "chat")
        if whole is None and report.reachable == "no":
            return
        await self._models()
        report.template = template_source(self._deployment)
        if whole is None:
            if "embeddings" in can:
                await self._embedding(backend)
            return
        await self._chosen_cap(backend, can)
        await self._streaming(backend, can, whole)
        probes: tuple[tuple[str, Callable[[Backend, Capabilities], Awaitable[None]]], ...] = (
            ("tools", self._tools),
            ("response_format.json_schema", self._schema),
            ("response_format.json_object", self._object),
            ("logprobs", self._logprobs),
            ("n", self._several),
            ("stop", self._stops),
        )
        for name, probe in probes:
            if name in can:
                await probe(backend, can)

    async def _streaming(self, backend: Backend, can: Capabilities, whole: _Probe) -> None:
        report = self._report
        self._cap(whole)
        streamed = await self._ask(backend, self._job(_COUNT, can, stream=True), "streaming")
        if streamed is None:
            report.streaming = "no"
            return
        self._said = _text(streamed)
        report.first_token_ms = streamed.first_ms
        report.streaming = "yes" if streamed.deltas > 1 else "at once"
        if streamed.deltas <= 1:
            self._finds("streaming: the whole answer came as one piece")
        told = [name for name, one in (("streamed", streamed), ("whole", whole)) if one.answer.usage is not None]
        report.usage = {2: "yes", 1: f"{told[0] if told else ''} only", 0: "no"}[len(told)]
        if len(told) < 2:
            self._finds(f"usage: {report.usage}; what it does not tell is estimated")
        for one in (streamed, whole):
            if (usage := one.answer.usage) is not None and not (usage.input_tokens and usage.output_tokens):
                self._finds(f"usage: it tells {usage.input_tokens} input and {usage.output_tokens} output tokens")
                break

    async def _chosen_cap(self, backend: Backend, can: Capabilities) -> None:
        """Whether it takes the cap that the gateway would choose; a small one it has taken."""
        chosen = self._chosen
        if chosen is None or chosen.tokens <= CAP or "max_tokens" not in can:
            return
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                backend.open(self._job("Say hello.", can, cap=chosen.tokens, stream=True)) as batches,
            ):
                async for batch in batches:
                    if any(isinstance(event, TextDelta) for event in batch):
                        return  # taken: the rest of the answer is not needed
        except UpstreamRejected as error:
            mend = f"set `context` or `default_output_tokens` of the model {chosen.model!r}"
            self._finds(
                f"output cap: it refuses the {chosen.tokens} tokens that the gateway chooses; {mend}: {error.message[:200]}"
            )
        except (GatewayError, TimeoutError) as error:
            self._failed(error, "output cap")

    def _cap(self, whole: _Probe) -> None:
        usage = whole.answer.usage
        if usage is not None and usage.output_tokens > _SMALL_CAP:
            self._finds(f"max_tokens: {usage.output_tokens} tokens came where {_SMALL_CAP} were allowed")

    async def _tools(self, backend: Backend, can: Capabilities) -> None:
        job = self._job("What is the weather in Paris? Call the tool.", can, tools=(_TOOL,))
        if "tool_choice" in can:
            job = msgspec.structs.replace(job, tool_choice=ToolChoice("function", _TOOL.name))
        probe = await self._ask(backend, job, "tools")
        calls = probe.answer.choices[0].tool_calls() if probe is not None and probe.answer.choices else ()
        self._report.tools = "yes" if calls and calls[0].name == _TOOL.name and _object(calls[0].arguments) else "no"
        if probe is not None and self._report.tools == "no":
            said = "with a call that cannot be used" if calls else "without a call"
            self._finds(f"tools: it answered {said}")

    async def _schema(self, backend: Backend, can: Capabilities) -> None:
        output = Output("json_schema", "probe", msgspec.Raw(_SCHEMA), strict=True)
        probe = await self._ask(
            backend, self._job("A colour of the sky, as JSON.", can, output=output), "response_format.json_schema"
        )
        got = _object(_text(probe)) if probe is not None else None
        sound = got is not None and list(got) == ["colour"] and isinstance(got["colour"], str)
        unfinished = probe is not None and _unfinished(probe)
        self._report.schema = "yes" if sound else "unfinished" if unfinished else "no"
        if probe is not None and not sound and not unfinished:
            self._finds("response_format.json_schema: the answer does not follow the schema")

    async def _object(self, backend: Backend, can: Capabilities) -> None:
        job = self._job("A colour of the sky, as a JSON object.", can, output=Output("json_object"))
        probe = await self._ask(backend, job, "response_format.json_object")
        if probe is not None and _object(_text(probe)) is None and not _unfinished(probe):
            self._finds("response_format.json_object: the answer is no JSON object")

    async def _logprobs(self, backend: Backend, can: Capabilities) -> None:
        job = msgspec.structs.replace(self._job("Say hello.", can, cap=_SMALL_CAP), top_logprobs=0)
        probe = await self._ask(backend, job, "logprobs")
        told = probe is not None and any(choice.logprobs for choice in probe.answer.choices.values())
        self._report.logprobs = "yes" if told else "no"
        if probe is not None and not told:
            self._finds("logprobs: none came")

    async def _several(self, backend: Backend, can: Capabilities) -> None:
        job = msgspec.structs.replace(self._job("Say hello.", can, cap=_SMALL_CAP), n=2)
        probe = await self._ask(backend, job, "n")
        if probe is not None and len(probe.answer.choices) != 2:
            self._finds(f"n: {len(probe.answer.choices)} choices came where 2 were asked")

    async def _stops(self, backend: Backend, can: Capabilities) -> None:
        """The streamed answer counts; a stop string that it ignores stands in it."""
        if not self._said:
            return
        stop = self._said[len(self._said) // 2 :][:12]
        job = self._job(_COUNT, can)
        job = msgspec.structs.replace(job, sampling=msgspec.structs.replace(job.sampling, stop=(stop,)))
        probe = await self._ask(backend, job, "stop")
        if probe is not None and stop in _text(probe):
            self._finds("stop: the stop string stands in the answer")

    async def _embedding(self, backend: Backend) -> None:
        job = EmbeddingRequest(self._deployment.model, (Prompt("hello"),))
        probe = await self._ask(backend, job, "embeddings")
        if self._report.models == "-" and self._report.reachable == "yes":
            await self._models()
        if probe is not None and not probe.answer.items:
            self._finds("embeddings: no vector came")

    async def _rerank(self, backend: Backend) -> None:
        probe = await self._ask(backend, RerankRequest(self._deployment.model, "hello", ("hello", "bye")), "rerank")
        if probe is not None and len(probe.answer.items) != 2:
            self._finds("rerank: a score is missing")

    async def _models(self) -> None:
        """Whether the server's own list names the model."""
        try:
            async with asyncio.timeout(self._timeout_s):
                names = await models_of(self._deployment)
        except (GatewayError, TimeoutError):
            self._report.models = "no list"
            return
        if names is None:
            return
        listed = self._deployment.model in names
        self._report.models = f"{len(names)}, {'with' if listed else 'without'} it"
        if not listed:
            self._finds(f"models: its list does not name {self._deployment.model!r}")

    def _job(self, question: str, can: Capabilities, *, cap: int = CAP, stream: bool = False, tools: tuple[Tool, ...] = (),
             output: Output | None = None) -> GenerationRequest:  # fmt: skip
        sampling = Sampling(max_tokens=cap if "max_tokens" in can else None, temperature=0.0 if "temperature" in can else None)
        message = Message("user", (Text(question),))
        return GenerationRequest(
            self._deployment.model, (message,), tools=tools, sampling=sampling, output=output or Output(), stream=stream
        )

    async def _ask(self, backend: Backend, job: Job, what: str) -> _Probe | None:
        """Run a job; None when it failed, which is then a finding."""
        fold, deltas, first = Fold(), 0, None
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s), backend.open(job) as batches:
                async for batch in batches:
                    fold.feed(batch)
                    texts = sum(isinstance(event, TextDelta) and bool(event.text) for event in batch)
                    if texts and first is None:
                        first = int((time.monotonic() - began) * 1000)
                    deltas += texts
        except (GatewayError, TimeoutError) as error:
            self._failed(error, what)
            return None
        self._report.reachable = "yes"
        return _Probe(fold.answer, deltas, first)

    def _failed(self, error: GatewayError | TimeoutError, what: str) -> None:
        report = self._report
        if report.reachable == "-":
            away = isinstance(error, UpstreamUnavailable | UpstreamTimeout | TimeoutError)
            report.reachable = "no" if away else "yes"
        if isinstance(error, TimeoutError):
            self._finds(f"{what}: no answer within {self._timeout_s:g} s")
            return
        code = f" ({error.code})" if error.code else ""
        kind = error.kind if isinstance(error, BackendError) else "refused here"
        self._finds(f"{what}: {kind}: {error.message}{code}")

    def _finds(self, finding: str) -> None:
        self._report.findings.append(finding)


def _text(probe: _Probe) -> str:
    choice = probe.answer.choices.get(0)
    return "".join(choice.text) if choice is not None else ""


def _unfinished(probe: _Probe) -> bool:
    """Whether an answer ran into its cap inside a JSON object, as small models do: neither a promise kept nor broken."""
    choice = probe.answer.choices.get(0)
    return choice is not None and choice.finish == "length" and _text(probe).lstrip().startswith("{")


def _object(text: str) -> dict[str, object] | None:
    try:
        return msgspec.json.decode(text.encode(), type=dict[str, object])
    except (ValueError, RecursionError):
        return None
