"""The dynamic configuration as a `Snapshot`: what refers to what is checked here, all problems at once.

Pure but for the secrets and templates it is handed a `resolve` for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from backends import registry
from backends.core.capabilities import CAPABILITY_NAMES, Capabilities
from backends.core.request import Sampling
from backends.dialects.server_quirks import QUIRKS
from backends.engines import kinds
from backends.templates.families import FAMILIES
from backends.templates.families import named as _builtin
from backends.templates.sources import Source
from gateway.config.addresses import bad_url
from gateway.config.compiled_engines import compile_engine
from gateway.config.compiled_limits import ANY_KEY, ANY_USER, GATEWAY, compile_limits
from gateway.config.compiled_prices import compiled_price, micros
from gateway.config.dynamic import (
    DefaultsEntry,
    DeploymentEntry,
    Dynamic,
    EngineEntry,
    ModelEntry,
    TeamEntry,
    TokenizerEntry,
)
from gateway.config.entries import Limit
from gateway.config.model_files import tokenizer_problem
from gateway.config.problems import KeyPath
from gateway.config.secrets import BadReference, resolve_reference
from gateway.config.snapshot import EngineSpec, Snapshot, Team
from gateway.config.templates import find as find_template
from gateway.config.validation import suggestion
from gateway.domain.principal import LimitSpec, Principal
from gateway.domain.route import Deployment, Price, Route, Timeouts


class Compiler:
    """One compilation. `report(path, problem, mend)` takes what is wrong; a snapshot is made only when it stayed silent."""

    def __init__(self, dynamic: Dynamic, base: Path, report: Callable[[KeyPath, str, str], None]) -> None:
        self._dynamic = dynamic
        self._base = base
        self._report = report

    def compile(self, version: str) -> Snapshot:
        """The snapshot. It is meaningless when anything was reported."""
        dynamic, zone = self._dynamic, self._dynamic.gateway.timezone
        deployments = {name: self._deployment(name, entry) for name, entry in dynamic.deployments.items()}
        models = self._models(deployments)
        self._unused(deployments)
        return Snapshot(
            version=version,
            models=models,
            deployments=deployments,
            engines={name: self._engine(name, entry) for name, entry in dynamic.engines.items()},
            teams={name: self._team(name, entry, models) for name, entry in dynamic.teams.items()},
            declared_keys=self._declared(models),
            key_limits=self._limits(dynamic.keys.default.limits, ANY_KEY, ("keys", "default")),
            user_limits=self._limits(dynamic.users.default.limits, ANY_USER, ("users", "default"), zone),
            users={
                name: self._limits(entry.limits, f"user:{name}", ("users", "named", name), zone)
                for name, entry in dynamic.users.named.items()
            },
            organisations={
                name: self._limits(entry.limits, f"organisation:{name}", ("organisations", name), entry.timezone or zone)
                for name, entry in dynamic.organisations.items()
            },
            gateway_limits=self._limits(dynamic.gateway.limits, GATEWAY, ("gateway",), zone),
            zone=zone,
        )

    def _team(self, name: str, entry: TeamEntry, models: Mapping[str, Route]) -> Team:
        path: KeyPath = ("teams", name)
        organisation = None
        if entry.organisation is not None:
            self._one_of((*path, "organisation"), entry.organisation, self._dynamic.organisations, "entry of organisations")
            organisation = self._dynamic.organisations.get(entry.organisation)
        zone = entry.timezone or (organisation.timezone if organisation else None) or self._dynamic.gateway.timezone
        return Team(
            name,
            self._allowed(entry.models, (*path, "models"), models),
            self._limits(entry.limits, f"team:{name}", path, zone),
            entry.organisation or "",
            zone,
        )

    def _limits(self, limits: Iterable[Limit], scope: str, path: KeyPath, zone: str = "") -> tuple[LimitSpec, ...]:
        """The limits of one owner; a limit of one model names it by its public name, not by an alias."""
        compiled = compile_limits(limits, scope, zone)
        for number, spec in enumerate(compiled):
            if spec.model:
                where = (*path, "limits", number, "model")
                self._one_of(where, spec.model, self._dynamic.models, "model")
        return compiled

    def _engine(self, name: str, entry: EngineEntry) -> EngineSpec:
        path: KeyPath = ("engines", name)
        self._one_of((*path, "kind"), entry.kind, kinds.ENGINES, "engine")
        template = self._template(path, entry).template
        known = self._families(path, entry)
        return compile_engine(name, entry, self._base, template=template, known=known, report=self._report)

    def _deployment(self, name: str, entry: DeploymentEntry) -> Deployment:
        path: KeyPath = ("deployments", name)
        self._place(path, entry)
        self._families(path, entry)
        engine = self._dynamic.engines.get(entry.engine or "")
        for side in ("adds", "lacks"):
            for one in getattr(entry.capabilities, side):
                self._one_of((*path, "capabilities", side), one, CAPABILITY_NAMES, "request parameter")
        for one in sorted(set(entry.capabilities.adds) & set(entry.capabilities.lacks)):
            self._report((*path, "capabilities"), f"{one!r} is both added and taken away", "keep it in one of the two")
        template = self._template(path, entry)
        return Deployment(
            id=name,
            model=entry.model,
            dialect=entry.dialect or "",
            quirks=entry.quirks or "",
            base_url=(entry.base_url or "").rstrip("/"),
            engine=entry.engine or "",
            credential=self._credential(path, entry),
            adds=frozenset(entry.capabilities.adds),
            lacks=frozenset(entry.capabilities.lacks),
            params=entry.params,
            max_in_flight=self._in_flight(entry),
            timeouts=Timeouts(**entry.timeouts.model_dump()),
            price=compiled_price(entry.price),
            later_prices=self._later_prices(path, entry),
            keepalive_s=entry.keepalive_s,
            template=template.template,
            template_eos=template.eos_token,
            template_stops=template.stops,
            repair=entry.repair,
            verify_tls=entry.verify_tls,
            early_keepalive_s=entry.early_keepalive_s,
            options=entry.options,
            tools=entry.tools or (engine.tools if engine else None) or "",
            thinking=entry.thinking or (engine.thinking if engine else None) or "",
            tokenizer=self._tokenizer_of(name),
        )

    def _families(self, path: KeyPath, entry: EngineEntry | DeploymentEntry) -> bool:
        """Whether the families of calls and thoughts are known ones."""
        if entry.tools is not None:
            self._one_of((*path, "tools"), entry.tools, registry.TOOL_FAMILIES, "family of tool calls")
        if entry.thinking is not None:
            self._one_of((*path, "thinking"), entry.thinking, registry.THINK_FAMILIES, "family of thoughts")
        known = entry.tools is None or entry.tools in registry.TOOL_FAMILIES
        return known and (entry.thinking is None or entry.thinking in registry.THINK_FAMILIES)

    def _in_flight(self, entry: DeploymentEntry) -> int | None:
        """The stated bound; an engine gets one request more than it has slots, so that waiting is the gate's: fair."""
        engine = self._dynamic.engines.get(entry.engine) if entry.engine is not None else None
        return engine.slots + 1 if engine is not None and entry.max_in_flight is None else entry.max_in_flight

    def _later_prices(self, path: KeyPath, entry: DeploymentEntry) -> tuple[tuple[int, Price], ...]:
        dated = [(micros(one.valid_from), compiled_price(one)) for one in entry.prices]
        for number, (at, _) in enumerate(dated):
            if at in [other for other, _ in dated[:number]]:
                self._report((*path, "prices", number, "valid_from"), "two prices begin at this instant", "remove one of them")
        return tuple(sorted(dated, key=lambda one: one[0]))

    def _place(self, path: KeyPath, entry: DeploymentEntry) -> None:
        """Exactly one place: a local engine, or a remote server."""
        if entry.engine is not None:
            for key in ("dialect", "quirks", "options", "base_url", "credential", "template", "template_options"):
                if getattr(entry, key):
                    self._report((*path, key), "it has no meaning beside `engine`", "remove it, or remove `engine`")
            self._one_of((*path, "engine"), entry.engine, self._dynamic.engines, "entry of engines")
            return
        if entry.dialect is None:
            self._report(path, "it has neither `engine` nor `dialect`", "add one of them")
            return
        self._one_of((*path, "dialect"), entry.dialect, registry.DIALECTS, "dialect")
        if entry.quirks is not None:
            self._one_of((*path, "quirks"), entry.quirks, QUIRKS, "set of quirks")
            if entry.quirks in QUIRKS and entry.dialect in registry.DIALECTS:
                self._pair(path, entry.dialect, entry.quirks)
        if entry.options and entry.dialect in registry.DIALECTS:
            self._options(path, entry.dialect, entry.quirks or "", entry.options)
        if entry.base_url is None:
            self._report(
                (*path, "base_url"), "the key is missing", "add the server's address, such as http://127.0.0.1:8000/v1"
            )
        elif reason := bad_url(entry.base_url):
            self._report((*path, "base_url"), *reason)

    def _pair(self, path: KeyPath, dialect: str, quirks: str) -> None:
        try:
            registry.dialect(dialect, quirks)
        except ValueError as error:
            self._report((*path, "quirks"), str(error), "remove the quirks, or choose the dialect that they belong to")

    def _options(self, path: KeyPath, dialect: str, quirks: str, options: Mapping[str, object]) -> None:
        try:
            registry.dialect(dialect, quirks if quirks in registry.quirks_of(dialect) else "", options)
        except ValueError as error:
            known = ", ".join(registry.options(dialect))
            self._report((*path, "options"), str(error), f"known: {known}" if known else "remove them")

    def _credential(self, path: KeyPath, entry: DeploymentEntry) -> str:
        if entry.credential is None:
            return ""
        try:
            value = resolve_reference(entry.credential, self._base)
        except BadReference as bad:
            self._report((*path, "credential"), bad.problem, bad.mend)
            return ""
        if not value.isascii() or not value.isprintable():
            self._report(
                (*path, "credential"), "the secret has characters that a header cannot carry", "check where it is kept"
            )
        return value

    def _template(self, path: KeyPath, entry: EngineEntry | DeploymentEntry | TokenizerEntry) -> Source:
        """A chat template: a built-in one, or what the named file holds."""
        if builtin := _builtin(entry.template):
            self._one_of((*path, "template"), builtin, FAMILIES, "built-in template")
            if builtin not in FAMILIES:
                return Source("")
        options = {} if isinstance(entry, EngineEntry) else entry.template_options
        try:
            return find_template(entry.template, self._base, options)
        except ValueError as error:
            mend = "write the path of a jinja file, a tokenizer_config.json, a GGUF or a model's folder"
            where, mend = ("template_options", "see the built-in templates") if options else ("template", mend)
            self._report((*path, where), str(error), mend)
            return Source("")

    def _tokenizer(self, path: KeyPath, file: str | None) -> str:
        """The path of a tokenizer.json."""
        if file is None:
            return ""
        if problem := tokenizer_problem(self._base / file):
            self._report((*path, "tokenizer", "file"), *problem)
        return str(self._base / file)

    def _tokenizer_of(self, deployment: str) -> str:
        """The tokenizer of the first model that names one and that this deployment serves."""
        models = (one for one in self._dynamic.models.values() if any(deployment in tier for tier in one.tiers))
        return next((str(self._base / one.tokenizer.file) for one in models if one.tokenizer.file is not None), "")

    def _models(self, deployments: Mapping[str, Deployment]) -> dict[str, Route]:
        routes: dict[str, Route] = {}
        for name, entry in self._dynamic.models.items():
            route = self._route(name, entry, deployments)
            routes[name] = route
            for number, alias in enumerate(entry.aliases):
                if alias in self._dynamic.models or alias in routes:
                    where: KeyPath = ("models", name, "aliases", number)
                    self._report(where, f"the name {alias!r} is taken by another model or alias", "choose another name")
                else:
                    routes[alias] = route
        return routes

    def _route(self, name: str, entry: ModelEntry, deployments: Mapping[str, Deployment]) -> Route:
        path: KeyPath = ("models", name)
        seen: set[str] = set()
        for number, tier in enumerate(entry.tiers):
            for place, one in enumerate(tier):
                where = (*path, "tiers", number, place)
                self._one_of(where, one, deployments, "entry of deployments")
                if one in seen:
                    self._report(where, f"{one!r} is there twice", "name each deployment once")
                seen.add(one)
        for one in entry.weights:
            if one not in seen:
                self._report(
                    (*path, "weights", one),
                    "no tier names this deployment",
                    suggestion(one, sorted(seen)) or "remove the weight",
                )
        if entry.weights and entry.policy != "weighted":
            self._report(
                (*path, "weights"), "weights count only for policy `weighted`", "write policy: weighted, or remove them"
            )
        stated = "default_output_tokens" in entry.model_fields_set
        if stated and entry.context and entry.default_output_tokens > entry.context:
            mend = "make it smaller than the context, so that a prompt fits beside it"
            self._report((*path, "default_output_tokens"), f"it is above the context of {entry.context} tokens", mend)
        for number, limit in enumerate(entry.limits):
            if limit.model is not None:
                where = (*path, "limits", number, "model")
                self._report(where, "a model's limit is of that model anyway", "remove it, or move the limit to a key or team")
        self._defaults(path, entry, [deployments[one] for one in sorted(seen) if one in deployments])
        return Route(
            name=name,
            tiers=tuple(tuple(deployments[one] for one in tier if one in deployments) for tier in entry.tiers),
            policy=entry.policy,
            weights=dict(entry.weights),
            context=self._context(entry, [deployments[one] for one in sorted(seen) if one in deployments]),
            default_output_tokens=entry.default_output_tokens,
            defaults=_sampling(entry.defaults),
            owned_by=entry.owned_by,
            limits=self._limits(entry.limits, f"model:{name}", path, self._dynamic.gateway.timezone),
            tokenizer=self._tokenizer(path, entry.tokenizer.file),
            chat_template=self._template((*path, "tokenizer"), entry.tokenizer).template,
        )

    def _defaults(self, path: KeyPath, entry: ModelEntry, deployments: Iterable[Deployment]) -> None:
        """A default that a deployment refuses would make a 400 of every request that reaches it."""
        stated = {name for name, value in entry.defaults.model_dump(exclude_unset=True).items() if value not in (None, ())}
        for one in deployments:
            can = self._capabilities(one)
            if one.params != "reject" or can is None:
                continue
            for name in sorted(stated - ((can | one.adds) - one.lacks)):
                problem = f"the deployment {one.id!r} does not support it, and its rule is `params: reject`"
                self._report((*path, "defaults", name), problem, "remove the default, or write params: drop there")

    def _context(self, entry: ModelEntry, deployments: Iterable[Deployment]) -> int:
        """The smallest context that is known of the model and of the engines behind it; 0 = none is."""
        engines = [self._dynamic.engines[one.engine].context for one in deployments if one.engine in self._dynamic.engines]
        return min([context for context in (entry.context, *engines) if context], default=0)

    def _capabilities(self, one: Deployment) -> Capabilities | None:
        """What its dialect or engine declares; None when a name is wrong, which is reported elsewhere."""
        if one.engine:
            entry = self._dynamic.engines.get(one.engine)
            if entry is None or entry.kind not in kinds.ENGINES:
                return None
            work = {"embedding": entry.embedding, "rerank": entry.rerank}
            return kinds.engine_capabilities(entry.kind, {**entry.options, **work})
        try:
            return registry.dialect(one.dialect, one.quirks, one.options).capabilities
        except ValueError:
            return None

    def _unused(self, deployments: Mapping[str, Deployment]) -> None:
        """An engine that no deployment uses would take memory for nothing, most likely by a mistake."""
        used = {one.engine for one in deployments.values()}
        for name in self._dynamic.engines:
            if name not in used:
                self._report(
                    ("engines", name), "no deployment uses this engine", f"add a deployment with engine: {name}, or remove it"
                )

    def _declared(self, models: Mapping[str, Route]) -> dict[str, Principal]:
        keys: dict[str, Principal] = {}
        names: set[str] = set()
        for number, entry in enumerate(self._dynamic.keys.declared):
            path: KeyPath = ("keys", "declared", number)
            digest = entry.hash.removeprefix("sha256:")
            if entry.name in names:
                self._report((*path, "name"), f"the name {entry.name!r} is there twice", "choose another name")
            if digest in keys:
                self._report((*path, "hash"), "another declared key has the same hash", "mint another key")
            if entry.team is not None:
                self._one_of((*path, "team"), entry.team, self._dynamic.teams, "entry of teams")
            names.add(entry.name)
            own = self._dynamic.keys.default.limits if entry.limits is None else entry.limits
            team = self._dynamic.teams.get(entry.team or "")
            keys[digest] = Principal(
                key_id=entry.name,
                team_id=entry.team or "",
                models=self._allowed(entry.models, (*path, "models"), models),
                org_id=(team.organisation or "") if team is not None else "",
                user=entry.user or "",
                limits=self._limits(own, f"key:{entry.name}", path if entry.limits is not None else ("keys", "default")),
                expires_us=None if entry.expires is None else micros(entry.expires),
                usage_on_finish=entry.usage_on_finish,
                default_model=entry.default_model or "",
            )
            if entry.default_model is not None:
                self._one_of((*path, "default_model"), entry.default_model, models, "model")
        return keys

    def _allowed(self, names: Iterable[str] | None, path: KeyPath, models: Mapping[str, Route]) -> frozenset[str] | None:
        """An allow-list by the routes' public names: an alias stands for its model."""
        if names is None:
            return None
        listed = list(names)
        for number, one in enumerate(listed):
            self._one_of((*path, number), one, models, "model")
        return frozenset(models[one].name for one in listed if one in models)

    def _one_of(self, path: KeyPath, name: str, known: Collection[str], what: str) -> None:
        if name not in known:
            mend = suggestion(name, sorted(known)) or f"known are: {_listed(known)}"
            self._report(path, f"there is no {what} named {name[:128]!r}", mend)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:20]) or "none"


def _sampling(defaults: DefaultsEntry) -> Sampling:
    return Sampling(**{name: value for name, value in defaults.model_dump().items() if value is not None})
