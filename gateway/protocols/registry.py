"""Which client API answers on which path: the only place that asks."""

from __future__ import annotations

from gateway.protocols.contract import ClientProtocol
from gateway.protocols.openai_chat import OpenAIChat
from gateway.protocols.openai_completions import OpenAICompletions
from gateway.protocols.openai_embeddings import OpenAIEmbeddings
from gateway.protocols.rerank import Rerank, Scoring

CHAT: ClientProtocol = OpenAIChat()
COMPLETIONS: ClientProtocol = OpenAICompletions()
EMBEDDINGS: ClientProtocol = OpenAIEmbeddings()
RERANK: ClientProtocol = Rerank()
SCORE: ClientProtocol = Scoring()

#: Exact request path to protocol; the others than those of /v1 are aliases.
PATHS: dict[str, ClientProtocol] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/v1/score": SCORE,
    "/chat/completions": CHAT,
    "/completions": COMPLETIONS,
    "/embeddings": EMBEDDINGS,
    "/rerank": RERANK,
    "/score": SCORE,
    "/v2/rerank": RERANK,  # Cohere's
}
