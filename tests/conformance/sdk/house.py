"""A gateway in front of one upstream that speaks four dialects, for the client libraries: models are `DIALECT-SCRIPT`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.gateway_process import GatewayProcess, declared_key
from tests.speakers import Speakers, speakers
from tests.upstream import in_thread

KEY, FEW, NARROW = "sk-clients-0123456789abcdef", "sk-clients-few-0123456789abcdef", "sk-clients-narrow-0123456789abcdef"
DIALECTS = ("openai", "ollama", "anthropic", "tgi")
WITH_VECTORS = ("openai", "ollama")
_SCRIPTS = ("words", "json", "endless", "cut", "mute", "fail-400", "fail-401", "fail-429", "fail-500")
_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% if m.role == 'tool' %}<tool_response>{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@dataclass
class Place:
    """The running gateway and the upstream behind it."""

    gateway: GatewayProcess
    upstream: Speakers

    @property
    def base_url(self) -> str:
        """What a client is given."""
        return self.gateway.url + "/v1"


def _deployments(url: str, template: str) -> dict[str, object]:
    made: dict[str, object] = {}
    for script in _SCRIPTS:
        far = {"model": script, "timeouts": {"first_event_s": 3}}
        made[f"openai-{script}"] = {**far, "dialect": "openai_compatible", "base_url": url + "/openai/v1"}
        made[f"ollama-{script}"] = {**far, "dialect": "ollama", "base_url": url + "/ollama"}
        made[f"anthropic-{script}"] = {**far, "dialect": "anthropic", "base_url": url + "/anthropic"}
        text = {"template": template, "tools": "hermes"}
        made[f"tgi-{script}"] = {**far, **text, "dialect": "tgi", "base_url": f"{url}/tgi/{script}"}
    return made


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """The gateway with a key for everything, one of one request a second, and one for a single model."""
    template = folder / "tools.jinja"
    template.write_text(_TEMPLATE)
    with in_thread(speakers) as upstream:
        deployments = _deployments(upstream.url, str(template))
        few = [{"requests": 1, "per": "second"}]
        tree: dict[str, object] = {
            "deployments": deployments,
            "models": {name: {"tiers": [[name]], "default_output_tokens": 200} for name in deployments},
            "keys": {
                "declared": [
                    declared_key("all", KEY),
                    declared_key("few", FEW, limits=few),
                    declared_key("narrow", NARROW, models=["openai-words"]),
                ]
            },
        }
        with GatewayProcess(folder / "gateway", tree) as gateway:
            gateway.start(timeout_s=90)
            yield Place(gateway, upstream)
