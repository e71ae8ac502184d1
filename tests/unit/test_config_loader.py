import datetime
from pathlib import Path

import pytest

from gateway.config.embedded import embedded_configuration
from gateway.config.loader import MAX_RUN_DIR_BYTES, load, parse, restart_needed
from gateway.config.problems import ConfigError, Problem
from gateway.config.settings import Configuration
from gateway.domain.principal import LimitSpec
from gateway.domain.route import Price, Timeouts

TEAM = """
server: {listen: "0.0.0.0:8080", workers: 4, cors_origins: ["https://app.example.com"]}
redis: {url: env:TEST_REDIS_URL, on_outage: allow}
ledger: {url: "sqlite+aiosqlite:///data/ledger.db"}
auth: {pepper: file:pepper}
engines:
  small: {kind: llamacpp, model: small.gguf, slots: 2, threads: 3}
deployments:
  local: {engine: small, model: small-1, max_in_flight: 4}
  vendor:
    dialect: openai_compatible
    base_url: https://api.example.com/v1/
    model: big-1
    credential: env:TEST_VENDOR_KEY
    params: drop
    capabilities: {adds: [top_k], lacks: [logprobs]}
    timeouts: {first_event_s: 20}
    price: {input: 2.50, cached_input: 0.0375, output: 10}
models:
  chat: {tiers: [[local], [vendor]], aliases: [gpt-4o-mini], context: 32768, defaults: {temperature: 0.7, stop: [END]}}
  big: {policy: weighted, tiers: [[vendor, local]], weights: {vendor: 3}}
teams:
  research: {models: [gpt-4o-mini], limits: [{tokens: 200000, per: minute}, {concurrent: 32}]}
keys:
  default: {limits: [{requests: 120, per: minute, on_outage: deny}]}
  declared:
    - {name: ci, hash: "sha256:HASH", team: research, expires: 2027-01-01}
    - {name: bot, hash: "sha256:HESH", models: [big], limits: [{requests: 1, per: second}], expires: 2027-01-01T00:00:00+01:00}
""".replace("HASH", "ab" * 32).replace("HESH", "cd" * 32)


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_REDIS_URL", "redis://:s3cret-pw@redis:6379/0")
    monkeypatch.setenv("TEST_VENDOR_KEY", " vendor-canary \n")
    (tmp_path / "pepper").write_text("p" * 64 + "\n")
    path = tmp_path / "config.yaml"
    path.write_text(TEAM)
    return path


def problems(text: str, base: Path = Path("/nowhere")) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), base / "c.yaml")
    return caught.value.problems


def only(text: str) -> Problem:
    (problem,) = problems(text)
    return problem


def test_a_team_configuration_becomes_a_snapshot(team: Path) -> None:
    found = load(team)
    assert found.static.server.address == ("0.0.0.0", 8080)
    assert found.redis_url == "redis://:s3cret-pw@redis:6379/0"
    assert not found.embedded
    assert found.ledger_url == f"sqlite+aiosqlite:///{team.parent}/data/ledger.db"
    assert found.state_dir == team.parent / "var"
    snapshot = found.snapshot
    chat = snapshot.models["chat"]
    assert snapshot.models["gpt-4o-mini"] is chat
    assert [[one.id for one in tier] for tier in chat.tiers] == [["local"], ["vendor"]]
    assert (chat.context, chat.default_output_tokens) == (4096, 1024)  # the engine's slots hold less than the model says
    assert (chat.defaults.temperature, chat.defaults.stop) == (0.7, ("END",))
    assert snapshot.models["big"].weights == {"vendor": 3}
    vendor = snapshot.deployments["vendor"]
    assert vendor.base_url == "https://api.example.com/v1"
    assert vendor.credential == "vendor-canary"
    assert vendor.price == Price(input=2_500_000, cached_input=37_500, output=10_000_000)
    assert vendor.timeouts == Timeouts(first_event_s=20)
    assert (vendor.adds, vendor.lacks, vendor.params) == (frozenset({"top_k"}), frozenset({"logprobs"}), "drop")
    engine = snapshot.engines["small"]
    assert (engine.model, engine.slots, engine.options["threads"]) == (str(team.parent / "small.gguf"), 2, 3)


def test_limits_are_compiled_with_their_owner(team: Path) -> None:
    snapshot = load(team).snapshot
    assert snapshot.key_limits == (LimitSpec("key", "requests", 120, 60_000, "deny"),)
    assert snapshot.teams["research"].limits == (
        LimitSpec("team:research", "tokens", 200_000, 60_000),
        LimitSpec("team:research", "slots", 32, 0),
    )


def test_every_scope_has_its_place_and_its_time_zone() -> None:
    found = parse(
        b"""
gateway: {timezone: Asia/Tokyo, limits: [{requests: 9, per: calendar_day}]}
organisations:
  acme: {timezone: Europe/Paris, limits: [{usd: 12.5, per: month}]}
teams:
  red: {organisation: acme, limits: [{input_tokens: 5, per: calendar_day, shadow: true}]}
  blue: {timezone: UTC, limits: [{output_tokens: 5, per: hour, on_insufficient: clamp}]}
users:
  default: {limits: [{tokens: 7, per: calendar_day}]}
  named: {eve: {limits: [{tokens: 8, per: second}]}}
deployments: {d: {dialect: openai_compatible, base_url: 'http://h', model: x}}
models: {m: {tiers: [[d]], limits: [{tokens: 3, per: minute}]}}
keys:
  declared:
    - {name: k, hash: 'sha256:%s', team: red, user: eve, limits: [{usd: 0.000001, per: month, model: m}]}
"""
        % (b"ab" * 32),
        Path("/nowhere/c.yaml"),
    ).snapshot
    assert found.zone == "Asia/Tokyo"
    assert found.gateway_limits == (LimitSpec("gateway", "requests", 9, period="day", zone="Asia/Tokyo"),)
    assert found.organisations["acme"] == (
        LimitSpec("organisation:acme", "nusd", 12_500_000_000, period="month", zone="Europe/Paris"),
    )
    red = LimitSpec("team:red", "input_tokens", 5, period="day", zone="Europe/Paris", shadow=True)
    assert found.teams["red"].limits == (red,)
    assert (found.teams["red"].organisation, found.teams["blue"].zone) == ("acme", "UTC")
    assert found.teams["blue"].limits == (LimitSpec("team:blue", "output_tokens", 5, 3_600_000, on_insufficient="clamp"),)
    assert found.user_limits == (LimitSpec("user", "tokens", 7, period="day", zone="Asia/Tokyo"),)
    assert found.users["eve"] == (LimitSpec("user:eve", "tokens", 8, 1000),)
    assert found.models["m"].limits == (LimitSpec("model:m", "tokens", 3, 60_000),)
    (key,) = found.declared_keys.values()
    assert (key.user, key.org_id) == ("eve", "acme")
    assert key.limits == (LimitSpec("key:k", "nusd", 1000, period="month", model="m"),)


@pytest.mark.parametrize(
    "place",
    [
        "gateway: {limits: [%s]}",
        "users: {default: {limits: [%s]}}",
        "users: {named: {u: {limits: [%s]}}}",
        "organisations: {o: {limits: [%s]}}",
        "teams: {t: {limits: [%s]}}",
        "keys: {default: {limits: [%s]}}",
        "keys: {declared: [{name: k, hash: 'sha256:" + "ab" * 32 + "', limits: [%s]}]}",
        "deployments: {d: {dialect: openai_compatible, base_url: 'http://h', model: x}}\n"
        "models: {m: {tiers: [[d]], limits: [%s]}}",
    ],
)
def test_a_ledger_that_forgets_a_months_beginning_is_refused_beside_a_monthly_limit(place: str) -> None:
    text = "ledger: {retain_days: 31}\n" + place % "{usd: 1, per: month}"
    assert only(text).key == "ledger.retain_days"
    parse(text.replace("31", "32").encode(), Path("/nowhere/c.yaml"))
    parse(text.replace("month", "calendar_day").encode(), Path("/nowhere/c.yaml"))


def test_declared_keys(team: Path) -> None:
    keys = load(team).snapshot.declared_keys
    ci, bot = keys["ab" * 32], keys["cd" * 32]
    assert (ci.key_id, ci.team_id, ci.models) == ("ci", "research", None)
    assert ci.limits == (LimitSpec("key:ci", "requests", 120, 60_000, "deny"),)
    assert bot.limits == (LimitSpec("key:bot", "requests", 1, 1000),)
    assert bot.models == frozenset({"big"})
    assert ci.expires_us is not None and bot.expires_us is not None
    assert ci.expires_us == int(datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC).timestamp()) * 1_000_000
    assert ci.expires_us - bot.expires_us == 3600 * 1_000_000


def test_an_engine_is_told_to_show_the_markers_that_are_read() -> None:
    text = "engines: {e: {model: m.gguf, tools: mistral, thinking: qwen}}\ndeployments: {d: {engine: e, model: m}}"
    found = parse(text.encode(), Path("/nowhere/c.yaml")).snapshot
    assert found.engines["e"].options == {"shown": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<think>", "</think>"]}
    assert (found.deployments["d"].tools, found.deployments["d"].thinking) == ("mistral", "qwen")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.9.9.9:80", "[::1]:80", "localhost:80"])
def test_no_key_is_needed_on_loopback_where_that_is_stated(listen: str) -> None:
    found = parse(f"auth: {{mode: none}}\nserver: {{listen: '{listen}'}}".encode(), Path("/nowhere/c.yaml"))
    assert found.static.auth.mode == "none"


def test_an_allow_list_may_name_an_alias(team: Path) -> None:
    snapshot = load(team).snapshot
    assert snapshot.teams["research"].models == frozenset({"chat"})
    assert snapshot.resolve("gpt-4o-mini", snapshot.declared_keys["ab" * 32]).name == "chat"


def test_no_secret_is_shown(team: Path) -> None:
    found = load(team)
    shown = repr(found) + repr(found.static) + repr(found.snapshot)
    assert "vendor-canary" not in shown
    assert "s3cret" not in shown
    assert "pppp" not in shown


def test_the_version_is_the_contents(team: Path) -> None:
    before = load(team).snapshot.version
    assert load(team).snapshot.version == before
    team.write_text(TEAM + "# more\n")
    assert load(team).snapshot.version != before


def test_the_environment_wins_over_the_file(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHYARD_SERVER__WORKERS", "2")
    monkeypatch.setenv("SWITCHYARD_TELEMETRY__METRICS__LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("SWITCHYARD_SERVER__CORS_ORIGINS", '["http://localhost:3000"]')
    monkeypatch.setenv("SWITCHYARD_REDIS__URL", "redis://other/1")
    monkeypatch.setenv("SWITCHYARD_PORT", "tcp://10.0.0.1:80")  # what Kubernetes injects for a service of that name
    found = load(team)
    assert found.static.server.workers == 2
    assert found.static.server.listen == "0.0.0.0:8080"
    assert found.static.server.cors_origins == ("http://localhost:3000",)
    assert found.static.telemetry.metrics.address == ("127.0.0.1", 0)
    assert found.redis_url == "redis://other/1"


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("SWITCHYARD_SERVER__WORKERS", "many", "SWITCHYARD_SERVER__WORKERS"),
        ("SWITCHYARD_SERVER__WROKERS", "2", "SWITCHYARD_SERVER__WROKERS"),
        ("SWITCHYARD_SEVER__WORKERS", "2", "SWITCHYARD_SEVER__WORKERS"),
        ("SWITCHYARD_SERVER__CORS_ORIGINS", "not json", ""),
        ("SWITCHYARD_AUTH__PEPPER", "env:NOT_THERE_AT_ALL", "SWITCHYARD_AUTH__PEPPER"),
    ],
)
def test_a_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str) -> None:
    monkeypatch.setenv(name, value)
    problem = only("")
    assert (problem.file, problem.key) == ("environment", key)


def test_every_problem_is_reported_at_once() -> None:
    found = problems("server: {wrokers: 2}\nmodles: {}\ndeployments: {a: {model: m}}\nkeys: {declared: [{name: x, hash: y}]}\n")
    assert {(one.key, one.line) for one in found} >= {("server.wrokers", 1), ("modles", 2), ("keys.declared[0].hash", 4)}


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("server: {wrokers: 2}", "server.wrokers", "'workers'"),
        ("sever: {}", "sever", "'server'"),
        ("models: {m: {tiers: [[a]]}}\nzzz: 1", "zzz", "server"),
        ("server: {listen: 8080}", "server.listen", "host:port"),
        ("server: {listen: '8080'}", "server.listen", "host:port"),
        ("server: {listen: 'h:99999'}", "server.listen", "65535"),
        ("server: {workers: 4}", "server.workers", "redis.url"),
        ("server: {cors_origins: [example.com]}", "server.cors_origins[0]", "scheme://"),
        ("server: {run_dir: %s}" % ("x" * MAX_RUN_DIR_BYTES), "server.run_dir", "too long"),
        ("redis: {url: 'redis://:pw@h'}\nauth: {pepper: env:TEST_PEPPER}", "redis.url", "password"),
        ("redis: {url: 'http://h'}\nauth: {pepper: env:TEST_PEPPER}", "redis.url", "redis://"),
        ("redis: {url: 'redis:///0'}\nauth: {pepper: env:TEST_PEPPER}", "redis.url", "redis://"),
        ("redis: {url: 'redis://h:x/0'}\nauth: {pepper: env:TEST_PEPPER}", "redis.url", "redis://"),
        ("redis: {url: 'redis://h/limits'}\nauth: {pepper: env:TEST_PEPPER}", "redis.url", "no number"),
        ("redis: {url: 'unix://'}\nauth: {pepper: env:TEST_PEPPER}", "redis.url", "unix:///path"),
        ("server: {listen: '127.0.0.1:9464'}", "telemetry.metrics.listen", "server.listen"),
        ("redis: {url: 'redis://h'}", "auth.pepper", "same secret"),
        ("auth: {pepper: literal-literal-literal-literal-literal}", "auth.pepper", "env:NAME"),
        ("auth: {pepper: env:TEST_SHORT}", "auth.pepper", "too short"),
        ("auth: {pepper: env:TEST_EMPTY}", "auth.pepper", "not set or empty"),
        ("auth: {pepper: file:nowhere}", "auth.pepper", "cannot be read"),
        ("telemetry: {metrics: {token: env:TEST_SHORT}}", "telemetry.metrics.token", "too short"),
        ("ledger: {url: 'mysql+aiomysql://h/d'}", "ledger.url", "postgresql"),
        ("ledger: {url: 'sqlite:///x.db'}", "ledger.url", "aiosqlite"),
        ("ledger: {url: 'sqlite+aiosqlite:///:memory:'}", "ledger.url", "file"),
        ("ledger: {url: 'postgresql+asyncpg://u:p@h/d'}", "ledger.url", "password"),
        ("ledger: {url: 'postgresql+asyncpg://h/d'}", "ledger.url", "without Redis"),
        ("teams: {t: {limits: [{usd: 0, per: month}]}}", "teams.t.limits[0].usd", "greater than 0"),
        ("teams: {t: {limits: [{usd: -300, per: month}]}}", "teams.t.limits[0].usd", "greater than 0"),
        ("teams: {t: {limits: [{usd: 1, per: year}]}}", "teams.t.limits[0].per", "month"),
        ("teams: {t: {limits: [{usd: 1}]}}", "teams.t.limits[0]", "per"),
        ("teams: {t: {limits: [{usd: 1, tokens: 2, per: day}]}}", "teams.t.limits[0]", "exactly one"),
        ("teams: {t: {limits: [{requests: 1, per: day, on_insufficient: clamp}]}}", "teams.t.limits[0]", "on_insufficient"),
        ("teams: {t: {limits: [{requests: 1, per: day, model: nope}]}}", "teams.t.limits[0].model", "'nope'"),
        ("teams: {t: {timezone: Mars/Olympus}}", "teams.t.timezone", "no such time zone"),
        ("teams: {t: {timezone: ../../etc/passwd}}", "teams.t.timezone", "no such time zone"),
        ("gateway: {timezone: ''}", "gateway.timezone", "1 character"),
        ("teams: {t: {organisation: nope}}", "teams.t.organisation", "'nope'"),
        (
            "models: {m: {tiers: [[d]], limits: [{requests: 1, per: day, model: m}]}}",
            "models.m.limits[0].model",
            "of that model anyway",
        ),
        ("teams: {t: {limits: [{tokens: 1}]}}", "teams.t.limits[0]", "per"),
        ("teams: {t: {limits: [{concurrent: 1, per: minute}]}}", "teams.t.limits[0]", "per"),
        ("teams: {t: {limits: [{tokens: 1, requests: 1, per: minute}]}}", "teams.t.limits[0]", "exactly one"),
        ("teams: {t: {limits: [{tokens: -1, per: minute}]}}", "teams.t.limits[0].tokens", "greater"),
        (f"teams: {{t: {{limits: [{{tokens: {2**53 + 1}, per: minute}}]}}}}", "teams.t.limits[0].tokens", "less"),
        ("teams: {'a b': {}}", "teams.a b", "characters"),
        ("teams: {t: {models: [nope]}}", "teams.t.models[0]", "'nope'"),
        ("keys: {declared: [{name: a, hash: 'sha256:XX'}]}", "keys.declared[0].hash", "64"),
        ("keys: {declared: [{name: a, hash: 'sha256:%s', team: z}]}" % ("0" * 64), "keys.declared[0].team", "'z'"),
        (
            "keys: {declared: [{name: a, hash: 'sha256:%s', default_model: z}]}" % ("0" * 64),
            "keys.declared[0].default_model",
            "'z'",
        ),
        ("auth: {mode: none}\nserver: {listen: '0.0.0.0:80'}", "auth.mode", "other machines"),
        ("auth: {mode: none}\nserver: {listen: 'gateway.example:80'}", "auth.mode", "other machines"),
        ("engines: {e: {model: m.gguf, tools: herms}}", "engines.e.tools", "'hermes'"),
        ("engines: {e: {model: m.gguf, thinking: gwen}}", "engines.e.thinking", "'qwen'"),
        ("engines: {e: {model: m.gguf}}", "engines.e", "no deployment"),
        ("engines: {a/b: {model: m.gguf}}", "engines.a/b", "1 to 32"),
        ("engines: {..: {model: m.gguf}}", "engines...", "dot"),
        (f"engines: {{{'e' * 33}: {{model: m.gguf}}}}", f"engines.{'e' * 33}", "1 to 32"),
        ("deployments: {d: {model: m}}", "deployments.d", "neither"),
        ("deployments: {d: {model: m, engine: e}}", "deployments.d.engine", "'e'"),
        ("deployments: {d: {model: m, dialect: openai_compatible}}", "deployments.d.base_url", "missing"),
        ("deployments: {d: {model: m, dialect: openai_compatible, base_url: 'ftp://h'}}", "deployments.d.base_url", "http"),
        (
            "deployments: {d: {model: m, dialect: openai_compatible, base_url: 'http://u:p@h'}}",
            "deployments.d.base_url",
            "credential",
        ),
        (
            "deployments: {d: {model: m, dialect: openai_compatible, base_url: 'http://h?x=1'}}",
            "deployments.d.base_url",
            "query",
        ),
        ("deployments: {d: {model: m, dialect: openai_compatible, base_url: 'http://h:x'}}", "deployments.d.base_url", "valid"),
        (
            "deployments: {d: {model: m, dialect: openai_compatible, base_url: 'http://${H}/v1'}}",
            "deployments.d.base_url",
            "host",
        ),
        (
            "deployments: {d: {model: m, dialect: openai_compatible, base_url: 'http://h/v1/chat/completions'}}",
            "deployments.d.base_url",
            "leave /chat/completions away",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(monkeypatch: pytest.MonkeyPatch, text: str, key: str, words: str) -> None:
    monkeypatch.setenv("TEST_PEPPER", "p" * 32)
    monkeypatch.setenv("TEST_SHORT", "short-canary")
    monkeypatch.setenv("TEST_EMPTY", " ")
    found = [one for one in problems(text) if one.key == key]
    assert found, problems(text)
    assert words in str(found[0])
    assert "canary" not in str(found[0])


REMOTE = "{dialect: openai_compatible, base_url: 'http://h/v1', model: m%s}"


@pytest.mark.parametrize(
    ("models", "key", "words"),
    [
        ("m: {tiers: [[alpa]]}", "models.m.tiers[0][0]", "'alpha'"),
        ("m: {tiers: [[alpha, alpha]]}", "models.m.tiers[0][1]", "twice"),
        ("m: {tiers: []}", "models.m.tiers", "at least 1"),
        ("m: {tiers: [[]]}", "models.m.tiers[0]", "at least 1"),
        ("m: {tiers: [[alpha]], weights: {alpa: 2}, policy: weighted}", "models.m.weights.alpa", "'alpha'"),
        ("m: {tiers: [[alpha]], weights: {alpha: 2}}", "models.m.weights", "weighted"),
        ("m: {tiers: [[alpha]], aliases: [m]}", "models.m.aliases[0]", "taken"),
        ("m: {tiers: [[alpha]], aliases: [n]}\n  n: {tiers: [[alpha]]}", "models.m.aliases[0]", "taken"),
        ("m: {tiers: [[alpha]], defaults: {max_tokens: 3}}", "models.m.defaults.max_tokens", "no such key"),
        ("m: {tiers: [[alpha]], defaults: {temperature: 3}}", "models.m.defaults.temperature", "less"),
        ("m: {tiers: [[alpha]], context: 512, default_output_tokens: 600}", "models.m.default_output_tokens", "512"),
        ("m: {tiers: [[alpha]], defaults: {temperature: 1, top_k: 5}}", "models.m.defaults.top_k", "params: drop"),
    ],
)
def test_models_are_cross_checked(models: str, key: str, words: str) -> None:
    found = problems(f"deployments:\n  alpha: {REMOTE % ''}\nmodels:\n  {models}\n")
    assert key in [one.key for one in found]
    assert words in "\n".join(str(one) for one in found)


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        (", engine: e", "dialect"),
        (", price: {input: -1}", "price.input"),
        (", prices: [{input: 1}]", "prices[0].valid_from"),
        (", prices: [{valid_from: 2026-12-01}, {valid_from: 2026-12-01T00:00:00Z}]", "prices[1].valid_from"),
        (", price: {input: 0.0000001}", "price.input"),
        (", credential: sk-literal-canary", "credential"),
        (", credential: env:NOT_THERE_AT_ALL", "credential"),
        (", template: nowhere.jinja", "template"),
        (", template: 'builtin:lama3'", "template"),
        (", template: 'builtin:api_like_oai', template_options: {bot: x}", "template_options"),
        (", template_options: {user_name: x}", "template_options"),
        (", options: {tokenize: true}", "options"),
        (", options: {tensors: {}}", "options"),
        (", quirks: vlm", "quirks"),
        (", capabilities: {adds: [tpo_k]}", "capabilities.adds"),
        (", capabilities: {adds: [top_k], lacks: [top_k]}", "capabilities"),
        (", params: dorp", "params"),
        (", timeouts: {total_s: 0}", "timeouts.total_s"),
    ],
)
def test_deployments_are_checked(extra: str, key: str) -> None:
    found = problems(f"deployments:\n  d: {REMOTE % extra}\n")
    assert f"deployments.d.{key}" in [one.key for one in found]
    assert "canary" not in "\n".join(str(one) for one in found)


def test_dialect_and_quirks_must_belong_together() -> None:
    text = "deployments: {d: {dialect: llamacpp, quirks: vllm, base_url: 'http://h', model: m}}"
    assert only(text).key == "deployments.d.quirks"
    assert only(text.replace("llamacpp, quirks: vllm", "llamacp")).mend == "did you mean 'llamacpp'?"


def test_a_default_that_the_engine_lacks_is_a_mistake() -> None:
    text = (
        "engines: {e: {model: m}}\ndeployments: {d: {engine: e, model: m}}\n"
        "models: {m: {tiers: [[d]], defaults: {top_k: 5, temperature: 1}}}"
    )
    assert parse(text.encode(), Path("/nowhere/c.yaml")).snapshot.models["m"].defaults.top_k == 5
    assert "top_k" in str(problems(text.replace("{model: m}}\ndep", "{model: m, embedding: true}}\ndep")))


def test_an_engine_is_given_only_what_was_stated() -> None:
    text = "engines: {e: {kind: scripted, model: m, options: {echo: true}}}\ndeployments: {d: {engine: e, model: m}}"
    assert parse(text.encode(), Path("/nowhere/c.yaml")).snapshot.engines["e"].options == {"echo": True}
    assert only(text.replace("scripted", "scriptd")).mend == "did you mean 'scripted'?"


def test_two_declared_keys_may_not_be_the_same() -> None:
    one = "{name: a, hash: 'sha256:%s'}" % ("0" * 64)
    keys = {found.key for found in problems(f"keys: {{declared: [{one}, {one}]}}")}
    assert keys == {"keys.declared[1].name", "keys.declared[1].hash"}


def test_the_embedded_default_is_sound(tmp_path: Path) -> None:
    found: Configuration = embedded_configuration(tmp_path)
    assert found.embedded and found.file is None
    assert found.static.server.address == ("127.0.0.1", 8080)
    assert set(found.snapshot.models) == {"chat", "embed"}
    assert found.snapshot.engines["embed"].options["embedding"] is True
    assert found.snapshot.engines["chat"].model.startswith(str(tmp_path))


def test_a_long_state_dir_still_has_short_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    found = embedded_configuration(deep)
    assert len(str(found.run_dir)) <= MAX_RUN_DIR_BYTES
    assert found.run_dir != embedded_configuration(tmp_path / ("e" * 90)).run_dir


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "absent.yaml")


def test_a_reload_names_what_needs_a_restart(team: Path) -> None:
    before = load(team).static
    team.write_text(TEAM.replace("workers: 4", "workers: 2").replace("data/ledger.db", "other.db"))
    assert restart_needed(before, load(team).static) == ["ledger.url", "server.workers"]


def test_a_built_in_template_brings_its_stops_and_a_dialect_its_options(tmp_path: Path) -> None:
    text = """
deployments:
  trt: {dialect: triton, base_url: "http://h:8000", model: ensemble, template: "builtin:llama3", options: {tensors: {seed: s}}}
models: {m: {tiers: [[trt]]}}
"""
    (trt,) = parse(text.encode(), tmp_path / "c.yaml").snapshot.models["m"].tiers[0]
    assert trt.template_stops == ("<|eot_id|>",)
    assert "start_header_id" in trt.template
    assert trt.options == {"tensors": {"seed": "s"}}
    with pytest.raises(ConfigError, match="unknown tensor 'sed'"):
        parse(text.replace("seed: s", "sed: s").encode(), tmp_path / "c.yaml")


def test_a_built_in_template_is_told_what_the_old_proxy_was_started_with(tmp_path: Path) -> None:
    text = """
deployments:
  old: {dialect: llamacpp_legacy, base_url: "http://h:8080", model: m, template: "builtin:api_like_oai",
        template_options: {user_name: "\\nQ: ", ai_name: "\\nA: "}}
  proxy: {dialect: openai_compatible, quirks: api_like_oai, base_url: "http://h:8081/v1", model: m, options: {tokenize: true}}
models: {a: {tiers: [[old, proxy]]}}
"""
    file = tmp_path / "switchyard.yaml"
    file.write_text(text)
    old = load(file).snapshot.deployments["old"]
    assert old.template_stops == ("</s>", "\nQ:")
    assert '"\\nQ: "' in old.template
