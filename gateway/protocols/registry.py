"""Which client API answers on which path: the only place that asks."""

from __future__ import annotations

from gateway.protocols.contract import ClientProtocol
from gateway.protocols.openai_chat import OpenAIChat
from gateway.protocols.openai_completions import OpenAICompletions
from gateway.protocols.openai_embeddings import OpenAIEmbeddings

CHAT: ClientProtocol = OpenAIChat()
COMPLETIONS: ClientProtocol = OpenAICompletions()
EMBEDDINGS: ClientProtocol = OpenAIEmbeddings()

#: Exact request path to protocol; the names without /v1 are aliases.
PATHS: dict[str, ClientProtocol] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/chat/completions": CHAT,
    "/completions": COMPLETIONS,
    "/embeddings": EMBEDDINGS,
}
