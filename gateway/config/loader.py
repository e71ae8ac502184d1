"""Reads a configuration: file and environment in, one `Configuration` or one `ConfigError` with every problem out."""

from __future__ import annotations

import hashlib
import importlib.util
import ipaddress
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from gateway.config.addresses import bad_redis_url
from gateway.config.certificates import BadCertificate, read_certificate
from gateway.config.compiler import Compiler
from gateway.config.document import MAX_BYTES, Document, read_document
from gateway.config.dynamic import Dynamic
from gateway.config.problems import ConfigError, KeyPath, Problem, dotted
from gateway.config.secrets import BadReference, is_reference, resolve_reference
from gateway.config.settings import Configuration
from gateway.config.snapshot import Snapshot
from gateway.config.static import ENV_PREFIX, Static
from gateway.config.validation import problems_of, suggestion

#: Keys whose value is a secret: in the file only as a reference. A URL may stand there as long as it has no password.
_SECRETS: tuple[tuple[str, ...], ...] = (
    ("auth", "pepper"),
    ("telemetry", "metrics", "token"),
    ("redis", "url"),
    ("ledger", "url"),
)
PEPPER_MIN_CHARACTERS = 32
#: Longest path of a run directory, in bytes: a Unix socket's path has 108 with a NUL (unix(7)), of which 46 are left
#: for the name of a socket, `/engine-<32 characters>.sock` at the longest.
MAX_RUN_DIR_BYTES = 61


def load(path: Path) -> Configuration:
    """The configuration of a file. Its chat templates are not tried (`gateway.config.templates`).

    Raises:
        ConfigError: it cannot be read or used; every problem is in it.
    """
    return parse(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """A configuration file's bytes, never more than the parser takes.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as source:
            return source.read(MAX_BYTES + 1)
    except OSError as error:
        problem = f"the file cannot be read: {error.strerror or type(error).__name__}"
        raise ConfigError([Problem(str(path), "", problem, "give the path of a readable YAML file")]) from error


def parse(data: bytes, path: Path) -> Configuration:
    """The configuration of bytes that were read from `path` (relative paths inside start at its folder).

    Raises:
        ConfigError: it cannot be used; every problem is in it.
    """
    document = read_document(data, str(path))
    return _Load(document, path.absolute().parent, version_of(data)).configuration(path)


def load_tree(tree: dict[str, object], base: Path, name: str) -> Configuration:
    """The configuration of values that come from no file, such as the embedded default.

    Raises:
        ConfigError: the environment or the values cannot be used.
    """
    return _Load(Document(name, tree, {}), base.absolute(), version_of(repr(tree).encode())).configuration(None)


def version_of(data: bytes) -> str:
    """The version of a configuration: a prefix of its content's SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def restart_needed(old: Static, new: Static) -> list[str]:
    """The static keys that differ, dotted: a reload does not change them, and should say so."""
    return sorted(dotted(path) for path in _differing(old.model_dump(), new.model_dump(), ()))


class _Load:
    """One load: collects problems from all its steps before it gives up."""

    def __init__(self, document: Document, base: Path, version: str) -> None:
        self._document = document
        self._base = base
        self._version = version
        self._problems: list[Problem] = []

    def configuration(self, file: Path | None) -> Configuration:
        tree = self._document.tree
        static_tree = {key: value for key, value in tree.items() if key in Static.model_fields}
        dynamic_tree = {key: value for key, value in tree.items() if key in Dynamic.model_fields}
        sections = [*Static.model_fields, *Dynamic.model_fields]
        for key in tree:
            if key not in sections:
                mend = suggestion(key, sections) or f"the keys here are {', '.join(sections)}"
                self._report((key,), "no such key", mend)
        static = self._static(static_tree)
        dynamic = self._dynamic(dynamic_tree)
        snapshot = None
        if dynamic is not None:
            snapshot = Compiler(dynamic, self._base, self._report).compile(self._version)
        result = None
        if static is not None and snapshot is not None:
            state_dir = self._base / static.state_dir
            result = Configuration(
                static=static,
                snapshot=snapshot,
                base=self._base,
                state_dir=state_dir,
                run_dir=self._run_dir(static, state_dir),
                ledger_url=self._ledger_url(static, state_dir),
                redis_url=None if static.redis.url is None else static.redis.url.get_secret_value(),
                file=file,
            )
            self._cross_check(static)
            self._check_certificate(result)
            self._check_retention(static, snapshot)
        if self._problems or result is None:
            raise ConfigError(sorted(self._problems, key=lambda one: one.line))
        return result

    def _dynamic(self, tree: Mapping[str, object]) -> Dynamic | None:
        try:
            return Dynamic.model_validate(_stated(tree))
        except ValidationError as error:
            self._problems += problems_of(error, Dynamic, self._document)
            return None

    def _static(self, tree: dict[str, object]) -> Static | None:
        environment = self._environment()
        for path in _SECRETS:
            self._no_literal(tree, path)
        try:
            static = Static(**_stated(tree))  # type: ignore[arg-type]  # checked by pydantic, not by mypy
        except ValidationError as error:
            for one in problems_of(error, Static, self._document):
                self._problems.append(self._blame_environment(one, environment))
            return None
        except SettingsError as error:
            self._problems.append(Problem("environment", "", str(error), "lists and mappings are written as JSON there"))
            return None
        return self._resolved(static, environment)

    def _environment(self) -> Mapping[str, object]:
        """What the environment sets, as a tree. Names are checked only below a `__`: container platforms inject
        variables such as SWITCHYARD_PORT for a service of that name."""
        for name in os.environ:
            section, nested, _ = name.removeprefix(ENV_PREFIX).lower().partition("__")
            if name.startswith(ENV_PREFIX) and nested and section not in Static.model_fields:
                mend = suggestion(section, list(Static.model_fields)) or f"sections are {', '.join(Static.model_fields)}"
                self._problems.append(Problem("environment", name, f"there is no section {section!r}", mend))
        try:
            return EnvSettingsSource(Static)()
        except SettingsError:
            return {}

    def _blame_environment(self, problem: Problem, environment: Mapping[str, object]) -> Problem:
        path = problem.key.partition("[")[0].split(".")
        if _get(environment, tuple(path)) is _ABSENT:
            return problem
        return problem._replace(file="environment", key=ENV_PREFIX + "__".join(path).upper(), line=0)

    def _no_literal(self, tree: Mapping[str, object], path: tuple[str, ...]) -> None:
        value = _get(tree, path)
        if not isinstance(value, str) or is_reference(value):
            return
        mend = "write env:NAME or file:PATH and keep the secret there"
        if path[-1] != "url":
            self._report(path, "a secret is written here as it is", mend)
        elif _has_password(value):
            self._report(path, "the URL carries a password", mend)

    def _resolved(self, static: Static, environment: Mapping[str, object]) -> Static | None:
        """The static half with every reference replaced by what it stands for; None when one leads nowhere."""
        result = static
        sound = True
        for path in _SECRETS:
            section: Any = static
            for part in path[:-1]:
                section = getattr(section, part)
            secret: SecretStr | None = getattr(section, path[-1])
            if secret is None or not is_reference(secret.get_secret_value()):
                continue
            try:
                value = SecretStr(resolve_reference(secret.get_secret_value(), self._base))
            except BadReference as bad:
                self._problems.append(
                    self._blame_environment(
                        Problem(self._document.file, dotted(path), bad.problem, bad.mend, self._document.line(path)),
                        environment,
                    )
                )
                sound = False
                continue
            result = _replaced(result, path, value)
        return result if sound else None

    def _cross_check(self, static: Static) -> None:
        redis = static.redis.url
        if redis is None and static.server.workers > 1:
            mend = "add redis.url, or set server.workers to 1"
            self._report(("server", "workers"), "more than one worker needs Redis to share limits", mend)
        if redis is not None and (wrong := bad_redis_url(redis.get_secret_value())) is not None:
            self._report(("redis", "url"), *wrong)
        if static.telemetry.metrics.address == static.server.address and static.server.address[1]:
            mend = "choose another port; with telemetry.metrics.token the API's port serves /metrics too"
            self._report(("telemetry", "metrics", "listen"), "server.listen has this address already", mend)
        if static.auth.mode == "none" and not _is_loopback(static.server.address[0]):
            self._report(
                ("auth", "mode"), "server.listen is open to other machines", "listen on 127.0.0.1, or write mode: keys"
            )
        pepper = static.auth.pepper
        if pepper is not None and len(pepper.get_secret_value()) < PEPPER_MIN_CHARACTERS:
            mend = f"make one of {PEPPER_MIN_CHARACTERS} random characters or more: openssl rand -hex 32"
            self._report(("auth", "pepper"), "the secret is too short", mend)
        if pepper is None and redis is not None:
            mend = "add auth.pepper: env:NAME or file:PATH, with the same secret on every gateway: openssl rand -hex 32"
            self._report(("auth", "pepper"), "gateways that share a Redis must share the pepper", mend)
        if static.telemetry.tracing.otlp_endpoint is not None and not _has_otel():
            mend = "install switchyard[otel], or remove the key"
            self._report(("telemetry", "tracing", "otlp_endpoint"), "OpenTelemetry's SDK is not installed", mend)
        token = static.telemetry.metrics.token
        if token is not None and len(token.get_secret_value()) < 16:
            self._report(("telemetry", "metrics", "token"), "the secret is too short", "16 random characters or more")

    def _check_certificate(self, result: Configuration) -> None:
        server = result.static.server
        if (server.tls_cert_file is None) is not (server.tls_key_file is None):
            stated = "tls_key_file" if server.tls_cert_file is None else "tls_cert_file"
            self._report(("server", stated), "certificate and key go together", "write both tls_cert_file and tls_key_file")
        elif (files := result.certificate_files) is not None:
            try:
                read_certificate(*files)
            except BadCertificate as error:
                mend = "write the paths of a PEM certificate chain and of its unencrypted PEM key"
                self._report(("server", "tls_cert_file"), str(error), mend)

    def _check_retention(self, static: Static, snapshot: Snapshot) -> None:
        """Without Redis counters are rebuilt from the ledger, so it must reach back to a month's beginning."""
        days = static.ledger.retain_days
        if static.redis.url is None and days < LONGEST_MONTH_DAYS and any(spec.period == "month" for spec in snapshot.limits()):
            mend = f"keep {LONGEST_MONTH_DAYS} days or more"
            self._report(("ledger", "retain_days"), "a restart would forget a part of a monthly limit", mend)

    def _ledger_url(self, static: Static, state_dir: Path) -> str:
        """SQLite paths become absolute, so that every command finds the same file wherever it is started."""
        if static.ledger.url is None:
            return f"sqlite+aiosqlite:///{state_dir / 'gateway.db'}"
        url = static.ledger.url.get_secret_value()
        scheme, separator, rest = url.partition("://")
        dialect, _, driver = scheme.partition("+")
        if not separator or dialect not in ("sqlite", "postgresql"):
            self._report(
                ("ledger", "url"), "it is not a database URL", "write sqlite+aiosqlite:///path or postgresql+asyncpg://…"
            )
            return url
        if dialect == "postgresql" and static.redis.url is None:
            mend = "add redis.url, or write sqlite+aiosqlite:///path"
            self._report(("ledger", "url"), "without Redis limits are counted in SQLite", mend)
        if driver not in ("aiosqlite", "asyncpg", "psycopg"):
            self._report(("ledger", "url"), "the driver is not an async one", "write sqlite+aiosqlite or postgresql+asyncpg")
        if dialect == "sqlite":
            path, question, query = rest[1:].partition("?")
            if not path or path.startswith(":memory:"):
                self._report(("ledger", "url"), "a database in memory is lost with the process", "name a file")
            return f"{scheme}:///{self._base / path}{question}{query}"
        return url

    def _run_dir(self, static: Static, state_dir: Path) -> Path:
        if static.server.run_dir is not None:
            chosen = self._base / static.server.run_dir
            if len(os.fsencode(chosen)) > MAX_RUN_DIR_BYTES:
                mend = f"choose a path of at most {MAX_RUN_DIR_BYTES} bytes"
                self._report(("server", "run_dir"), "the path is too long for Unix sockets in it", mend)
            return chosen
        usual = state_dir / "run"
        if len(os.fsencode(usual)) <= MAX_RUN_DIR_BYTES:
            return usual
        mark = hashlib.sha256(os.fsencode(usual)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"switchyard-{os.getuid()}-{mark}"

    def _report(self, path: KeyPath, problem: str, mend: str) -> None:
        self._problems.append(Problem(self._document.file, dotted(path), problem, mend, self._document.line(path)))


_ABSENT = object()
#: 31 days, and one for time zones and changes of clocks.
LONGEST_MONTH_DAYS = 32


def _get(tree: object, path: tuple[str, ...]) -> object:
    for part in path:
        if not isinstance(tree, Mapping) or part not in tree:
            return _ABSENT
        tree = tree[part]
    return tree


def _stated(tree: Mapping[str, object]) -> dict[str, object]:
    """Sections left empty in YAML (`teams:`) are null: they mean their default."""
    return {key: value for key, value in tree.items() if value is not None}


def _has_password(url: str) -> bool:
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return True


def _replaced(model: Static, path: tuple[str, ...], value: SecretStr) -> Static:
    chain: list[Any] = [model]
    for part in path[:-1]:
        chain.append(getattr(chain[-1], part))
    fresh: Any = value
    for one, part in zip(reversed(chain), reversed(path), strict=True):
        fresh = one.model_copy(update={part: fresh})
    result: Static = fresh
    return result


def _differing(old: object, new: object, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {*old, *new}:
            yield from _differing(old.get(key), new.get(key), (*path, key))
    elif old != new:
        yield path


def _has_otel() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
