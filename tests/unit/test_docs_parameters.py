"""docs/parameters.md names what the wire structs accept, ignore and refuse."""

import re
from pathlib import Path

from backends.core.capabilities import LOCAL_SAMPLING
from gateway.protocols.openai_wire import IGNORED, REFUSED, GenerationBody

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "parameters.md").read_text()


def section(title: str) -> set[str]:
    text = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`([a-z_.]+)`", text))


def table(title: str) -> set[str]:
    return set(re.findall(r"^\| `([a-z_]+)` \|", PAGE.split(f"## {title}\n")[1].split("\n## ")[0], re.MULTILINE))


def test_every_local_sampling_parameter_is_listed() -> None:
    listed = table("Sampling parameters beyond OpenAI's")
    assert listed == LOCAL_SAMPLING | {"repeat_penalty", "n_predict", "grammar"}
    assert listed <= set(GenerationBody.__struct_fields__)


def test_the_ignored_and_the_refused_are_listed() -> None:
    assert section("Accepted and ignored") == set(IGNORED)
    assert section("Known and refused") == set(REFUSED)
