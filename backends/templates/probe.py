"""A chat template on trial: rendered on probe conversations in a process of its own, with limits, before it is used.

`examine` starts `python -m backends.templates.probe`, which reads the source from its standard input. A template that
takes too long, too much memory, or renders none of the probes is refused; one that refuses some of them in its own words
(no system role, no tools) is not.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec

from backends.core.errors import BadRequest
from backends.core.request import Message, Text, Tool, ToolCall
from backends.templates.jinja import ChatTemplate, Overlong

#: What the trial may take: seconds of computation and of waiting, bytes of address space.
CPU_S = 10
WAIT_S = 30
MEMORY_BYTES = 1 << 30
_TOOL = Tool("look_up", "Looks a word up.", msgspec.Raw(b'{"type": "object", "properties": {"word": {"type": "string"}}}'))
_USER = Message("user", (Text("How are you?"),))
_SYSTEM = Message("system", (Text("Be brief."),))
_CALL = Message("assistant", tool_calls=(ToolCall("call_1", "look_up", '{"word": "sky"}'),))
_RESULT = Message("tool", (Text("blue"),), tool_call_id="call_1")
PROBES: tuple[tuple[tuple[Message, ...], tuple[Tool, ...]], ...] = (
    ((_USER,), ()),
    ((_SYSTEM, _USER), ()),
    ((_USER, Message("assistant", (Text("Well."),)), _USER), ()),
    (
        (
            _USER,
            Message("assistant", (Text("Well."),), reasoning="Hm."),
            Message("user", (Text("\u4e16\u754c \U0001f30d " * 500),)),
        ),
        (),
    ),
    ((_USER,), (_TOOL,)),
    ((_USER, _CALL, _RESULT), (_TOOL,)),
)


def examine(source: str) -> str:
    """What is wrong with a chat template, in one sentence; "" when it may be used. Blocks, half a second as a rule."""
    packages = str(Path(__file__).resolve().parents[2])
    environment = {"PYTHONPATH": os.pathsep.join([*filter(None, sys.path), packages]), "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(  # our own module, in our own interpreter
            [sys.executable, "-m", "backends.templates.probe"],
            input=source.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=WAIT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the chat template took more than {WAIT_S} s on probe conversations"
    if done.returncode < 0 or done.returncode == _OUT_OF_MEMORY:
        return f"the chat template took more than {CPU_S} s or {MEMORY_BYTES >> 20} MiB on probe conversations"
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][-200:]
        return f"the chat template could not be tried: {last}"
    return done.stdout.decode("utf-8", "replace")


def problem(source: str) -> str:
    """The same, in this process."""
    try:
        template = ChatTemplate(source)
    except ValueError as error:
        return str(error)
    said = ""
    for messages, tools in PROBES:
        try:
            template.render(messages, tools)
        except Overlong as error:
            return error.message
        except BadRequest as error:
            said = said or f"{error.message} {error.detail}".strip()
        else:
            return ""
    return f"the chat template renders none of the probe conversations: {said}"


_OUT_OF_MEMORY = 3


def main() -> None:
    """Try the template on standard input; print what is wrong with it."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        sys.stdout.write(problem(sys.stdin.buffer.read().decode("utf-8", "replace")))
    except MemoryError:
        sys.exit(_OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
