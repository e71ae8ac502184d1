"""What a server can be asked outside any job: what it tells of itself, and its tokenizer. Over the control client, not hot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from backends.core.contracts import UpstreamRequest
from backends.core.errors import UpstreamUnavailable
from backends.core.facts import Facts
from backends.remote.control import ControlClient


class Inspection(NamedTuple):
    """A dialect's requests for it, pure. `facts` reads what came of `paths`, which a server may have switched off."""

    paths: tuple[str, ...]
    facts: Callable[[Sequence[bytes]], Facts]
    tokenize_request: Callable[[str], UpstreamRequest] | None = None
    tokens_of: Callable[[bytes], tuple[int, ...]] | None = None
    detokenize_request: Callable[[Sequence[int]], UpstreamRequest] | None = None
    text_of: Callable[[bytes], str] | None = None


async def facts_of(client: ControlClient, inspection: Inspection) -> Facts:
    """What a server tells of itself; nothing where it answers with an error.

    Raises:
        BackendError: it is not reachable, or no HTTP.
    """
    answers = [await client.get(path) for path in inspection.paths]
    return inspection.facts([one.body for one in answers if one.status == 200])


async def tokens_of(client: ControlClient, inspection: Inspection, text: str) -> tuple[int, ...] | None:
    """A text's token ids by the server's own tokenizer; None where it cannot be asked.

    Raises:
        BackendError: it is not reachable, or answers nonsense.
    """
    if inspection.tokenize_request is None or inspection.tokens_of is None:
        return None
    return inspection.tokens_of(await _asked(client, inspection.tokenize_request(text)))


async def text_of(client: ControlClient, inspection: Inspection, tokens: Sequence[int]) -> str | None:
    """The text of token ids by the server's own tokenizer; None where it cannot be asked.

    Raises:
        BackendError: it is not reachable, or answers nonsense.
    """
    if inspection.detokenize_request is None or inspection.text_of is None:
        return None
    return inspection.text_of(await _asked(client, inspection.detokenize_request(tokens)))


async def _asked(client: ControlClient, request: UpstreamRequest) -> bytes:
    answer = await client.ask(request)
    if answer.status != 200:
        raise UpstreamUnavailable("The server does not do this.", detail=f"{request.path}: status {answer.status}")
    return answer.body
