"""The dynamic configuration: engines, deployments, models, teams and keys, as they stand in the file.

These models check each value by itself; `gateway.config.compiler` checks what refers to what and makes the snapshot.
Every field's description begins with its unit where it has one.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from gateway.config.entries import EngineName, Entry, Hash, Instant, Limit, Name, TemplateOptions, Usd, Zone


class EngineEntry(Entry):
    """A local engine: one process, one model, shared by all workers."""

    kind: str = Field(default="llamacpp", description="which engine")
    model: str = Field(
        min_length=1,
        description="path of the model file, of its folder for vllm and transformers; a relative one starts at the"
        " configuration file; those two also take a hub's ORGANISATION/NAME",
    )
    slots: int = Field(default=4, ge=1, le=256, description="requests that are computed at once")
    context: int = Field(default=4096, ge=32, le=2**24, description="tokens of prompt and answer that one slot holds")
    queue: int = Field(
        default=64, ge=0, le=100_000, description="requests that may wait inside the engine beyond its slots; more is a 503"
    )
    embedding: bool = Field(default=False, description="the model makes embeddings instead of text")
    rerank: bool = Field(default=False, description="the model scores documents against a query instead of making text")
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="threads of computation (default: all cores but one; one for an embedding model)",
    )
    batch: int = Field(default=128, ge=32, le=65_536, description="tokens of one step; a longer prompt is read in pieces of it")
    gpu_layers: int = Field(default=0, ge=-1, le=10_000, description="layers kept on the GPU; -1 = all, 0 = none")
    load: Literal["eager", "lazy"] = Field(
        default="eager", description="eager: when the gateway starts; lazy: when the first request for it comes"
    )
    idle_unload_s: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="seconds without a request after which it is unloaded (default: never)",
    )
    memory_mb: int | None = Field(
        default=None,
        ge=1,
        le=2**24,
        description="MiB that it counts for in server.engine_memory_mb (default: the size of its files and a fifth more, or the"
        " resident memory of its loaded process where that is more; needed where a GPU holds the model)",
    )
    memory_limit_mb: int | None = Field(
        default=None,
        ge=64,
        le=2**24,
        description="MiB of data that its process may have, mapped weights not counted; past it the model fails alone"
        " (default: no limit)",
    )
    watchdog_s: float = Field(
        default=60,
        ge=1,
        le=86_400,
        description="seconds that one of its steps may take; then it is killed and restarted",
    )
    load_timeout_s: float = Field(
        default=600, ge=1, le=86_400, description="seconds that loading may take; then it is killed and restarted"
    )
    template: str | None = Field(
        default=None,
        description="path of a chat template (jinja), or builtin: and a family, as in deployments.*.template (default: the"
        " model's own)",
    )
    lora: dict[Name, str] = Field(
        default_factory=dict,
        max_length=64,
        description="LoRA adapters: paths by the name that a deployment's `model` chooses one by; any other name is the model"
        " without an adapter",
    )
    tools: str | None = Field(
        default=None, description="family in whose way the model writes tool calls in its text (default: none)"
    )
    thinking: str | None = Field(default=None, description="family in whose way the model marks its thoughts (default: none)")
    python: str | None = Field(
        default=None,
        min_length=1,
        description="Python interpreter that has the engine's packages: a name on the PATH, or a path; a relative one starts at"
        " the configuration file (default: the gateway's own)",
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables of the engine's process, such as CUDA_VISIBLE_DEVICES"
    )
    options: dict[str, object] = Field(
        default_factory=dict,
        description="further options of the kind; llamacpp: mmap, prefix_cache, pooling, beside, stretch,"
        " rerank_template, cache_tokens, kept_tokens",
    )


class TimeoutsEntry(Entry):
    """How long a deployment may take."""

    connect_s: float = Field(default=5, gt=0, le=3600, description="seconds to connect")
    first_event_s: float = Field(
        default=120, gt=0, le=86_400, description="seconds to the first token; then the next deployment is tried"
    )
    idle_s: float = Field(default=60, gt=0, le=86_400, description="seconds between two events of a stream")
    total_s: float = Field(default=1800, gt=0, le=86_400, description="seconds from the attempt's start to its end")


class PriceEntry(Entry):
    """What a deployment's tokens cost."""

    input: Usd = Field(default=Decimal(0), description="USD per million input tokens")
    cached_input: Usd | None = Field(
        default=None, description="USD per million input tokens read from a cache (default: as input)"
    )
    output: Usd = Field(default=Decimal(0), description="USD per million output tokens")


class LaterPrice(PriceEntry):
    """What a deployment's tokens cost from an instant on."""

    valid_from: Instant = Field(description="date, or date and time, of admission from which it holds; UTC without a zone")


class CapabilitiesEntry(Entry):
    """Corrections to what a deployment's dialect and quirks declare."""

    adds: tuple[str, ...] = Field(default=(), description="request parameters that it can do all the same, by wire name")
    lacks: tuple[str, ...] = Field(default=(), description="request parameters that it cannot do, by wire name")


class DeploymentEntry(Entry):
    """One place that serves a model: either a local `engine`, or a remote server (`dialect` and `base_url`)."""

    engine: Name | None = Field(default=None, description="name of a local engine")
    dialect: str | None = Field(default=None, description="wire language of a remote server")
    quirks: str | None = Field(default=None, description="which server speaks the dialect, where its ways differ")
    options: dict[str, object] = Field(
        default_factory=dict,
        description="what the dialect must know of this server; triton: accumulate_tokens, exclude_input_in_output, eos_texts,"
        " tensors; sglang: incremental_streaming_output; chinese_alpaca: num_beams; ffm: tool_form; tei: max_client_batch_size;"
        " openai_compatible with the quirks api_like_oai: tokenize",
    )
    base_url: str | None = Field(default=None, max_length=2048, description="http:// or https:// address, without credentials")
    model: str = Field(min_length=1, max_length=512, description="the name that the server or engine knows the model by")
    credential: str | None = Field(default=None, description="reference (env:NAME or file:PATH) to the server's API key")
    params: Literal["reject", "drop", "forward"] = Field(
        default="reject",
        description="what happens to a request parameter that it does not support: a 400, left out, or sent all the same",
    )
    capabilities: CapabilitiesEntry = Field(default_factory=CapabilitiesEntry, description="corrections to what it can do")
    max_in_flight: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="requests in progress there at once; others wait fairly (default: no bound, on an engine its slots + 1)",
    )
    timeouts: TimeoutsEntry = Field(default_factory=TimeoutsEntry, description="how long it may take")
    price: PriceEntry = Field(default_factory=PriceEntry, description="what its tokens cost")
    prices: tuple[LaterPrice, ...] = Field(
        default=(), max_length=256, description="later prices, each from its `valid_from` on; before the first `price` holds"
    )
    keepalive_s: float = Field(
        default=4, ge=0, le=3600, description="seconds that an idle connection to it is kept for the next request"
    )
    early_keepalive_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="seconds of silence before the first token after which status 200 and a comment line are sent, for clients"
        " behind impatient proxies (default: never)",
    )
    template: str | None = Field(
        default=None,
        description="chat template for dialects that need the prompt rendered by us: path of a jinja file, of a"
        " tokenizer_config.json, of a GGUF or of a model's folder, or builtin: and one of"
        " chatml, qwen, llama2, llama3, mistral, zephyr, gemma, phi, alpaca, vicuna, deepseek, api_like_oai",
    )
    template_options: TemplateOptions = Field(
        default_factory=dict,
        max_length=16,
        description="what a built-in template is told; api_like_oai: chat_prompt, user_name, ai_name, system_name, stop, as"
        " llama.cpp's old proxy was started with",
    )
    tools: str | None = Field(
        default=None,
        description="family in whose way the model writes tool calls in its text, for servers that do not read them"
        " (default: the engine's)",
    )
    thinking: str | None = Field(
        default=None,
        description="family in whose way the model marks its thoughts, for servers that do not tell them apart"
        " (default: the engine's)",
    )
    repair: bool = Field(
        default=False,
        description="whether JSON forms of the answer that it cannot be held to are asked of it in words, checked, and asked"
        " once more when they do not fit; such answers come at once",
    )
    verify_tls: bool = Field(default=True, description="whether its certificate is checked")


class DefaultsEntry(Entry):
    """Sampling parameters used where the request states none."""

    temperature: float | None = Field(default=None, ge=0, le=2, description="randomness; 0 = the likeliest token")
    top_p: float | None = Field(default=None, gt=0, le=1, description="probability mass to choose from")
    top_k: int | None = Field(default=None, ge=0, le=1_000_000, description="likeliest tokens to choose from; 0 = all")
    min_p: float | None = Field(default=None, ge=0, le=1, description="least probability, as a part of the likeliest token's")
    typical_p: float | None = Field(default=None, gt=0, le=1, description="locally typical sampling")
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, description="1 = none")
    repeat_last_n: int | None = Field(
        default=None, ge=-1, le=1_000_000, description="tokens that the penalties look back; -1 = all"
    )
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, description="0 = none")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, description="0 = none")
    mirostat: Literal[0, 1, 2] | None = Field(default=None, description="version of mirostat; 0 = off")
    mirostat_tau: float | None = Field(default=None, ge=0, le=100, description="mirostat's target entropy")
    mirostat_eta: float | None = Field(default=None, ge=0, le=1, description="mirostat's learning rate")
    min_tokens: int | None = Field(default=None, ge=0, le=1_000_000, description="tokens before the model may end")
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1, description="of the random choice")
    stop: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(), max_length=16, description="texts that end the answer"
    )


class TokenizerEntry(Entry):
    """The model's own tokenizer: prompts are counted, where they are estimated without it."""

    file: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="path of a Hugging Face tokenizer.json (needs the extra `tokenizers`)",
    )
    template: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="the model's chat template, which makes the count of a conversation exact: as deployments.<name>.template",
    )
    template_options: TemplateOptions = Field(
        default_factory=dict, max_length=16, description="as deployments.<name>.template_options"
    )


class ModelEntry(Entry):
    """A model as clients know it."""

    tiers: tuple[Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)], ...] = Field(
        min_length=1, max_length=32, description="lists of deployments; the next list is tried when all of one have failed"
    )
    policy: Literal["weighted", "round_robin", "least_busy"] = Field(
        default="least_busy", description="how one of a tier is chosen"
    )
    weights: dict[Name, Annotated[int, Field(ge=1, le=1_000_000)]] = Field(
        default_factory=dict, description="by deployment, for policy `weighted` (default: 1 each)"
    )
    aliases: tuple[Name, ...] = Field(default=(), max_length=256, description="further names of the model")
    context: int = Field(default=0, ge=0, le=2**24, description="tokens of prompt and answer together; 0 = unknown")
    default_output_tokens: int = Field(
        default=1024, ge=1, le=2**24, description="output cap in tokens of a request that states none"
    )
    defaults: DefaultsEntry = Field(default_factory=DefaultsEntry, description="sampling where the request states none")
    owned_by: str = Field(default="switchyard", min_length=1, max_length=128, description="shown by GET /v1/models")
    limits: tuple[Limit, ...] = Field(default=(), max_length=32, description="of the model, whoever asks for it")
    tokenizer: TokenizerEntry = Field(default_factory=TokenizerEntry, description="the model's own tokenizer")


class GatewayEntry(Entry):
    """The whole gateway: what holds for all requests together."""

    timezone: Zone = Field(default="UTC", description="IANA name; where calendar periods begin at midnight unless a team says")
    limits: tuple[Limit, ...] = Field(default=(), max_length=32, description="shared by everybody")


class OrganisationEntry(Entry):
    """An organisation: its teams share these limits."""

    timezone: Zone | None = Field(default=None, description="of its calendar limits and its teams' (default: gateway.timezone)")
    limits: tuple[Limit, ...] = Field(default=(), max_length=32, description="shared by all its teams")


class TeamEntry(Entry):
    """A team: its keys share these limits."""

    organisation: Name | None = Field(default=None, description="name of an organisation")
    timezone: Zone | None = Field(
        default=None, description="of its calendar limits and its keys' (default: the organisation's or gateway.timezone)"
    )

    models: tuple[Name, ...] | None = Field(default=None, description="models its keys may use (default: all)")
    limits: tuple[Limit, ...] = Field(default=(), max_length=32, description="shared by all keys of the team")


class UserDefaults(Entry):
    """What holds for users whom `users.named` does not name."""

    limits: tuple[Limit, ...] = Field(default=(), max_length=32, description="limits of each such user, over all keys")


class UserEntry(Entry):
    """A user: all keys that name it share these limits."""

    limits: tuple[Limit, ...] = Field(default=(), max_length=32, description="its limits (instead of users.default.limits)")


class Users(Entry):
    """Users: limits over all keys of a person. Their calendar periods begin at midnight in gateway.timezone."""

    default: UserDefaults = Field(default_factory=UserDefaults, description="for users that are not named")
    named: dict[Name, UserEntry] = Field(default_factory=dict, description="users by the name that their keys carry")


class KeyDefaults(Entry):
    """What holds for keys that state nothing else."""

    limits: tuple[Limit, ...] = Field(default=(), max_length=32, description="limits of each key that has none of its own")


class DeclaredKey(Entry):
    """A key whose hash stands in the file, so that no minting is needed."""

    name: Name = Field(description="shown in logs and the ledger; unique")
    hash: Hash = Field(
        description="sha256: and the SHA-256 of the key in hexadecimal; the key needs 20 random characters or more"
    )
    team: Name | None = Field(default=None, description="name of a team")
    user: Name | None = Field(default=None, description="the user whose key it is")
    models: tuple[Name, ...] | None = Field(default=None, description="models it may use (default: all that its team may)")
    limits: tuple[Limit, ...] | None = Field(
        default=None, max_length=32, description="its own limits (default: keys.default.limits)"
    )
    usage_on_finish: bool = Field(
        default=False,
        description="streams carry the usage on the last finish chunk, and no chunk without a choice, for older clients",
    )
    default_model: Name | None = Field(
        default=None, description="model that answers where the request names one that does not exist (default: a 404)"
    )
    expires: Instant | None = Field(
        default=None, description="date, or date and time; UTC where no zone is given (default: never)"
    )


class Keys(Entry):
    """API keys. Minted keys (`switchyard keys new`) live in the ledger's database, not here."""

    default: KeyDefaults = Field(default_factory=KeyDefaults, description="for keys that state nothing else")
    declared: tuple[DeclaredKey, ...] = Field(default=(), max_length=10_000, description="keys given by hash")


class Dynamic(Entry):
    """Everything that a reload can change."""

    engines: dict[EngineName, EngineEntry] = Field(default_factory=dict, description="local engines by name")
    deployments: dict[Name, DeploymentEntry] = Field(default_factory=dict, description="places that serve models, by name")
    models: dict[Name, ModelEntry] = Field(default_factory=dict, description="models by the name that clients use")
    gateway: GatewayEntry = Field(default_factory=GatewayEntry, description="the whole gateway")
    organisations: dict[Name, OrganisationEntry] = Field(default_factory=dict, description="organisations by name")
    teams: dict[Name, TeamEntry] = Field(default_factory=dict, description="teams by name")
    users: Users = Field(default_factory=Users, description="limits of users")
    keys: Keys = Field(default_factory=Keys, description="API keys")
