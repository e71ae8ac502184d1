"""Chat templates on trial in a process of their own, and a configuration that brings a bad one."""

from pathlib import Path

import pytest
import yaml

from backends.templates.families import FAMILIES
from backends.templates.probe import examine
from gateway.cli import main
from gateway.config.loader import load
from gateway.config.problems import ConfigError
from gateway.config.templates import sources, try_templates


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_our_own_pass(name: str) -> None:
    assert examine(FAMILIES[name].template) == ""


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "within 2 s"),
        ("{{ raise_exception('never') }}", "none of the probe conversations: never"),
        ("{{ x ", "broken in line 1"),
        ("{% set n = namespace(s=['a' * 1000000]) %}{% for i in range(3000) %}{% set n.s = n.s + ['b' ~ i ~ 'a' * 999999] %}"
         "{% endfor %}", "."),
    ],
)  # fmt: skip
def test_bad_ones_are_refused(source: str, why: str) -> None:
    assert why in examine(source)


def test_one_that_refuses_a_system_prompt_may_be_used() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    assert examine(refusing) == ""


def test_a_configuration_with_a_bad_template_names_the_deployment(tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("{{ raise_exception('never') }}")
    place = {"dialect": "tgi", "base_url": "http://127.0.0.1:9", "model": "m", "template": "bad.jinja"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"deployments": {"d": place}, "models": {"m": {"tiers": [["d"]]}}}))
    found = load(tmp_path / "config.yaml")
    with pytest.raises(ConfigError) as caught:
        try_templates(found.snapshot, found.file)
    try_templates(found.snapshot, found.file, {source for _, source in sources(found.snapshot)})  # tried before
    assert main(["check", str(tmp_path / "config.yaml")]) != 0
    assert "deployments.d.template" in str(caught.value)
    assert "probe conversations" in str(caught.value)
