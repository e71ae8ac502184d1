"""The static configuration: what only a restart can change. Environment first, then the file, then the default.

An environment variable is the key in capitals with `SWITCHYARD_` before it and `__` between levels:
`server.workers` is `SWITCHYARD_SERVER__WORKERS`. Lists are JSON. Every field's description begins with its unit where
it has one; `gateway.config.reference` prints them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ENV_PREFIX = "SWITCHYARD_"


def split_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:8080` or `[::1]:8080` as host and port; port 0 lets the system choose.

    Raises:
        ValueError: it is not of this form.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError("write host:port, for instance 127.0.0.1:8080 or [::1]:8080")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("the port is a whole number from 0 to 65535")
    return host.strip("[]"), int(port)


def _listen(text: str) -> str:
    split_listen(text)
    return text


def _origin(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if text != "*" and (scheme not in ("http", "https") or not separator or not rest or "/" in rest):
        raise ValueError("an origin is scheme://host[:port] without a path, or *")
    return text


Listen = Annotated[str, AfterValidator(_listen)]
Origin = Annotated[str, AfterValidator(_origin)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Server(Section):
    """The HTTP side: where it listens and what it bears with."""

    listen: Listen = Field(default="127.0.0.1:8080", description="host:port of the API; port 0 lets the system choose")
    tls_cert_file: str | None = Field(
        default=None,
        min_length=1,
        description="path of the PEM certificate chain that the API is served with, read again when it changes (default: plain"
        " HTTP)",
    )
    tls_key_file: str | None = Field(
        default=None, min_length=1, description="path of its PEM private key, unencrypted (default: plain HTTP)"
    )
    workers: int = Field(default=1, ge=1, le=256, description="processes that answer requests; more than one needs redis.url")
    max_body_mb: int = Field(default=32, ge=1, le=1024, description="MiB of a request's body; more is a 413")
    max_header_fields: int = Field(default=100, ge=8, le=1000, description="header fields of a request; more is a 431")
    max_head_kb: int = Field(default=32, ge=4, le=1024, description="KiB of a request's line and headers; more is a 431")
    head_timeout_s: float = Field(
        default=10, gt=0, le=600, description="seconds within which a head must be complete; else a 408"
    )
    body_timeout_s: float = Field(
        default=10, gt=0, le=600, description="seconds without progress of a request's body; then a 408"
    )
    keepalive_s: float = Field(default=75, ge=0, le=3600, description="seconds an idle client connection is kept open")
    client_stall_s: float = Field(
        default=30, gt=0, le=3600, description="seconds a client may not read its stream; then it is cut"
    )
    drain_s: float = Field(default=60, ge=0, le=3600, description="seconds that open streams get to end after SIGTERM")
    drain_delay_s: float = Field(
        default=0, ge=0, le=600, description="seconds between not ready and no longer listening, for load balancers to notice"
    )
    queue_length: int = Field(
        default=4096, ge=0, le=1_000_000, description="requests that may wait for full deployments; more is a 503"
    )
    queue_wait_s: float = Field(
        default=30, ge=0, le=3600, description="seconds a request may wait for a full deployment; then a 503"
    )
    engine_memory_mb: int | None = Field(
        default=None,
        ge=1,
        le=2**24,
        description="MiB that loaded local engines may take together; who needs more waits until engines least recently used"
        " have answered what they have and are unloaded (default: no bound)",
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(), description="origins whose browser pages may call the API; empty = none"
    )
    run_dir: str | None = Field(
        default=None,
        min_length=1,
        description="folder of the Unix sockets and of the workers' flight records (1.1 MB each), mode 0700 (default: `run` in"
        " state_dir, or a private folder of the system's"
        " temporary folder where that path is too long for a socket)",
    )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        return split_listen(self.listen)


class Redis(Section):
    """Where limits are shared by workers and gateways."""

    url: SecretStr | None = Field(
        default=None, description="redis:// or rediss:// or unix://, or a reference; without it limits live in the one process"
    )
    timeout_ms: int = Field(default=50, ge=1, le=60_000, description="milliseconds that an admission waits for Redis")
    on_outage: Literal["deny", "allow"] = Field(
        default="deny", description="what a limit without its own on_outage does while Redis does not answer"
    )


class Ledger(Section):
    """Where keys and the rows of settled requests are stored."""

    url: SecretStr | None = Field(
        default=None,
        description="SQLAlchemy URL with an async driver, or a reference (default: gateway.db in state_dir, SQLite)",
    )
    retain_days: int = Field(default=400, ge=1, le=36_500, description="days that ledger rows are kept")
    retain_audit_days: int = Field(
        default=1100, ge=1, le=36_500, description="days that the audit trail keeps who changed what"
    )


class Auth(Section):
    """How keys are checked."""

    mode: Literal["keys", "none"] = Field(
        default="keys",
        description="none: a request without any key is let in too, as the holder `anonymous` with keys.default.limits; only"
        " where server.listen is a loopback address, and never for a browser's page",
    )

    pepper: SecretStr | None = Field(
        default=None,
        description="reference to the secret, at least 32 characters, that minted keys are signed with; the same on every"
        " gateway of a team (default: file `pepper` in state_dir, made at the first start; required when redis.url is set)",
    )


class Metrics(Section):
    """The Prometheus exporter."""

    listen: Listen = Field(default="127.0.0.1:9464", description="host:port of the metrics, summed over workers")
    token: SecretStr | None = Field(
        default=None,
        description="reference to a bearer token; with it /metrics is served on the API's port too, behind the token",
    )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        return split_listen(self.listen)


def _http(text: str) -> str:
    if not text.startswith(("http://", "https://")) or any(ord(letter) <= 32 or ord(letter) > 126 for letter in text):
        raise ValueError("write an http:// or https:// URL, for instance http://127.0.0.1:4318/v1/traces")
    return text


class Tracing(Section):
    """OpenTelemetry spans of each request."""

    otlp_endpoint: Annotated[str, AfterValidator(_http)] | None = Field(
        default=None,
        description="full URL of an OTLP/HTTP collector, for instance http://127.0.0.1:4318/v1/traces; needs the extra otel"
        " (default: no tracing)",
    )
    sample: float = Field(default=1.0, ge=0, le=1, description="part of the requests without a traceparent that is traced")
    follow_clients: bool = Field(
        default=True, description="whether a client's traceparent is continued, its sampling decision with it"
    )
    service_name: str = Field(default="switchyard", min_length=1, description="service.name of the spans")


class Telemetry(Section):
    """What the gateway says about itself."""

    metrics: Metrics = Field(default_factory=Metrics, description="the Prometheus exporter")
    tracing: Tracing = Field(default_factory=Tracing, description="OpenTelemetry spans of each request")
    log_format: Literal["json", "text"] = Field(default="json", description="one JSON object or one readable line per event")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least severe event that is written"
    )


class Static(BaseSettings):
    """Everything that only a restart can change."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid", frozen=True,
        hide_input_in_errors=True,
    )  # fmt: skip

    server: Server = Field(default_factory=Server, description="the HTTP side")
    redis: Redis = Field(default_factory=Redis, description="shared limits")
    ledger: Ledger = Field(default_factory=Ledger, description="keys and settled requests")
    auth: Auth = Field(default_factory=Auth, description="how keys are checked")
    telemetry: Telemetry = Field(default_factory=Telemetry, description="metrics and logs")
    state_dir: str = Field(
        default="var",
        min_length=1,
        description="folder of what the gateway keeps; relative paths start at the configuration file",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, which comes as init values; nothing else is read."""
        return env_settings, init_settings
