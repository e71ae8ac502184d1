"""Built-in chat templates, for models that carry none, with the strings that end an answer in them.

Written from the model cards of Llama 2 and 3, Mistral 7B Instruct, Zephyr, Gemma, Phi 3, Stanford Alpaca, Vicuna 1.5,
DeepSeek V3 and Qwen 2 (Hugging Face, read 2026-11). None writes the BOS token at its beginning: servers add it when
they tokenise a prompt. Models without a system role get the system's text in front of the first user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec


class Family(msgspec.Struct, frozen=True):
    """A template's source, and the strings at which its answers end where the server does not know."""

    template: str
    stops: tuple[str, ...] = ()


_CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content or '' }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
#: `system`: the first message's text if it is the system's; `turns`: the others.
_SYSTEM_APART = """\
{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' -%}
{%- set turns = messages[1:] if messages and messages[0].role == 'system' else messages -%}
"""
_LLAMA2 = (
    _SYSTEM_APART
    + """\
{%- for message in turns -%}
{%- if message.role == 'assistant' -%}
{{ ' ' + (message.content or '') + ' </s>' }}
{%- else -%}
{{ ('' if loop.first else '<s>') + '[INST] ' }}
{%- if loop.first and system -%}
{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}
{%- endif -%}
{{ (message.content or '') + ' [/INST]' }}
{%- endif -%}
{%- endfor -%}
"""
)
_LLAMA3 = """\
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + (message.content or '') + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""
_MISTRAL = (
    _SYSTEM_APART
    + """\
{%- for message in turns -%}
{%- if message.role == 'assistant' -%}
{{ ' ' + (message.content or '') + '</s>' }}
{%- else -%}
{{ '[INST] ' }}
{%- if loop.first and system -%}
{{ system + '\\n\\n' }}
{%- endif -%}
{{ (message.content or '') + ' [/INST]' }}
{%- endif -%}
{%- endfor -%}
"""
)
_ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + (message.content or '') + '</s>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>\\n' }}
{%- endif -%}
"""
_GEMMA = (
    _SYSTEM_APART
    + """\
{%- for message in turns -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
{%- if loop.first and system -%}
{{ system + '\\n\\n' }}
{%- endif -%}
{{ (message.content or '') + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
)
_PHI = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + (message.content or '') + '<|end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>\\n' }}
{%- endif -%}
"""
_ALPACA = (
    _SYSTEM_APART
    + """\
{%- if system -%}
{{ system + '\\n\\n' }}
{%- endif -%}
{%- for message in turns -%}
{%- if message.role == 'assistant' -%}
{{ '### Response:\\n' + (message.content or '') + '\\n\\n' }}
{%- else -%}
{{ '### Instruction:\\n' + (message.content or '') + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '### Response:\\n' }}
{%- endif -%}
"""
)
_VICUNA = (
    _SYSTEM_APART
    + """\
{%- if system -%}
{{ system + ' ' }}
{%- endif -%}
{%- for message in turns -%}
{%- if message.role == 'assistant' -%}
{{ 'ASSISTANT: ' + (message.content or '') + '</s>' }}
{%- else -%}
{{ 'USER: ' + (message.content or '') + ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ 'ASSISTANT:' }}
{%- endif -%}
"""
)
_DEEPSEEK = (
    _SYSTEM_APART
    + """\
{{ system }}
{%- for message in turns -%}
{%- if message.role == 'assistant' -%}
{{ '<\uff5cAssistant\uff5c>' + (message.content or '') + '<\uff5cend\u2581of\u2581sentence\uff5c>' }}
{%- else -%}
{{ '<\uff5cUser\uff5c>' + (message.content or '') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<\uff5cAssistant\uff5c>' }}
{%- endif -%}
"""
)

#: What llama.cpp's old proxy api_like_OAI.py was started with: its own defaults, under its own names.
_PROXY: Mapping[str, str] = MappingProxyType(
    {
        "chat_prompt": "A chat between a curious user and an artificial intelligence assistant. The assistant follows the"
        " given rules no matter what.\n",
        "user_name": "\nUSER: ",
        "ai_name": "\nASSISTANT: ",
        "system_name": "\nASSISTANT's RULE: ",
        "stop": "</s>",
    }
)


def _proxy(names: Mapping[str, str] = _PROXY) -> Family:
    """What that proxy makes of a conversation when it is started with these names."""
    text = {name: msgspec.json.encode(value).decode() for name, value in names.items()}
    return Family(
        f"""\
{{{{ {text["chat_prompt"]} }}}}
{{%- for message in messages -%}}
{{%- if message.role == 'system' -%}}
{{{{ {text["system_name"]} + (message.content or '') }}}}
{{%- elif message.role == 'assistant' -%}}
{{{{ {text["ai_name"]} + (message.content or '') + {text["stop"]} }}}}
{{%- else -%}}
{{{{ {text["user_name"]} + (message.content or '') }}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{{{ ({text["ai_name"]}).rstrip() }}}}
{{%- endif -%}}
""",
        tuple(stop for stop in (names["stop"], names["user_name"].rstrip()) if stop.strip()),
    )


#: Families by name.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "chatml": Family(_CHATML, ("<|im_end|>",)),
        "qwen": Family(_CHATML, ("<|im_end|>",)),
        "llama2": Family(_LLAMA2, ("</s>",)),
        "llama3": Family(_LLAMA3, ("<|eot_id|>",)),
        "mistral": Family(_MISTRAL, ("</s>",)),
        "zephyr": Family(_ZEPHYR, ("</s>",)),
        "gemma": Family(_GEMMA, ("<end_of_turn>",)),
        "phi": Family(_PHI, ("<|end|>",)),
        "alpaca": Family(_ALPACA, ("### Instruction:",)),
        "vicuna": Family(_VICUNA, ("</s>", "USER:")),
        "api_like_oai": _proxy(),
        "deepseek": Family(_DEEPSEEK, ("<\uff5cend\u2581of\u2581sentence\uff5c>",)),
    }
)


def named(template: str | None) -> str:
    """The family that a configuration's `builtin:NAME` names; "" for anything else."""
    text = template or ""
    return text.removeprefix("builtin:") if text.startswith("builtin:") else ""


#: What of a family a configuration may say otherwise, with its defaults.
OPTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType({"api_like_oai": _PROXY})


def family(name: str, options: Mapping[str, str] = MappingProxyType({})) -> Family:
    """A built-in template and its stop strings. `options`: its own names; a backslash and n stand for a new line, as on a
    command line.

    Raises:
        ValueError: unknown family or option; the known ones are named.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown template family {name!r}; known: {', '.join(sorted(FAMILIES))}")
    if not options:
        return FAMILIES[name]
    known = OPTIONS.get(name, {})
    for one in options:
        if one not in known:
            raise ValueError(f"the template {name!r} has no option {one[:64]!r}; known: {', '.join(known) or 'none'}")
    return _proxy({**known, **{one: text.replace("\\n", "\n") for one, text in options.items()}})
