"""`switchyard import mbase | litellm | llama-swap FILE`: another program's configuration as Switchyard's, on standard output.

What has no equivalent stands in comments at the head of the result, and on standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gateway.command_parts import Refused

Commands = Any  # argparse does not name the type of `add_subparsers`
_KINDS = {
    "mbase": "a description of mbase_openai_server (JSON)",
    "litellm": "the proxy configuration of LiteLLM (YAML)",
    "llama-swap": "the configuration of llama-swap (YAML)",
}


def add_import(commands: Commands) -> None:
    """`import`."""
    kinds = commands.add_parser("import", help="turn another program's configuration into Switchyard's").add_subparsers(
        required=True, metavar="program"
    )
    for kind, what in _KINDS.items():
        parser = kinds.add_parser(kind, help=what)
        parser.add_argument("file", type=Path, help=what)
        parser.set_defaults(run=_import, kind=kind)


def _import(chosen: argparse.Namespace) -> int:
    from gateway.config.importing.litellm import import_litellm
    from gateway.config.importing.llama_swap import import_llama_swap
    from gateway.config.importing.mbase import import_mbase
    from gateway.config.importing.result import MAX_BYTES, NotImportable

    reads = {"mbase": import_mbase, "litellm": import_litellm, "llama-swap": import_llama_swap}
    try:
        with chosen.file.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Refused(f"{chosen.file} has more than {MAX_BYTES} bytes")
        made = reads[chosen.kind](data)
    except OSError as error:
        raise Refused(f"{chosen.file} cannot be read: {error.strerror}") from error
    except NotImportable as error:
        raise Refused(f"{chosen.file}: {error}") from error
    sys.stdout.write(made.text())
    for note in made.notes:
        print(note, file=sys.stderr)
    return 0
