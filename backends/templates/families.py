"""Built-in chat templates, for models that carry none."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content or '' }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

#: Template sources by family name.
FAMILIES: Mapping[str, str] = MappingProxyType({"chatml": _CHATML})


def family(name: str) -> str:
    """A built-in template's source.

    Raises:
        ValueError: unknown; the known ones are named.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown template family {name!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
