"""What a template may not do: take long, or make a text that is too long, by whatever way."""

import pytest

from backends.core.errors import BadRequest
from backends.core.request import Message, Text
from backends.templates import jinja
from backends.templates.jinja import ChatTemplate, Overlong

HI = (Message("user", (Text("hi"),)),)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% for a in range(9999) %}{% for b in range(9999) %}"
        "{% call f() %}{% endcall %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "RENDER_S", 0.05)
    with pytest.raises(Overlong, match="within"):
        ChatTemplate(source).render(HI)


@pytest.mark.parametrize(
    "source",
    [
        "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s.replace('a', 'a' * 1000) %}{% endfor %}",
        "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s | replace('a', 'a' * 1000) %}{% endfor %}",
        "{% set n = namespace(s='a' * 1000) %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='a' * 1000) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{{ range(99999) | map('string') | join('x' * 99999) }}",
        "{{ ('x' * 99999).join(range(99999) | map('string') | list) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a'.zfill(999999999) }}",
        "{{ '\\t'.expandtabs(999999999) }}",
        "{{ 'a' | indent(999999999) }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%0999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format('a') }}",
        "{{ '{:>{w}}'.format('a', w=999999999) }}",
        "{{ {} | tojson(indent=999999999) }}",
        "{{ 'ab'.translate({97: 'x' * 999999}) }}",
        "{{ lipsum(n=999999) }}",
    ],
)
def test_a_text_that_would_be_too_long_is_never_made(source: str) -> None:
    with pytest.raises(BadRequest, match="cannot render"):
        ChatTemplate(source).render(HI)


def test_what_real_templates_do_stays_allowed() -> None:
    source = (
        "{% set n = namespace(s='') %}{% for m in messages %}{% set n.s = n.s ~ m.role + ': ' ~ m.content %}{% endfor %}"
        "{{ n.s }}|{{ '%s-%02d' % ('a', 3) }}|{{ '%s' | format('x') }}|{{ '{} {:>3}'.format('a', 'b') }}|"
        "{{ ['a', 'b'] | join(', ') }}|{{ messages | map(attribute='role') | join }}|{{ {'a': 1} | tojson(indent=2) }}|"
        "{{ 'x'.replace('x', 'y') }}|{{ 123456 | string | replace('1', '2') }}|{{ '-' * 3 }}|{{ ' a ' | trim }}|{{ 7 % 2 }}"
    )
    assert ChatTemplate(source).render(HI) == 'user: hi|a-03|x|a   b|a, b|user|{\n  "a": 1\n}|y|223456|---|a|1'
