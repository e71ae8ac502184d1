"""What OpenAI-like servers do differently: a line of data each, for the dialect `openai_compatible`.

Read 2026-11-21 in: vLLM 0.33 wheel, llama.cpp server as vendored in llama-cpp-python 0.3.36, Ollama fb30760,
text-generation-inference db931fc, SGLang 0.5.23, transformers 5.23, LocalAI 2026-08, LMDeploy 0.18, FastChat 0.2.36, Triton
server e1db8a6 (`python/openai`), TensorRT-LLM 2026 (`trtllm-serve`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from backends.core.capabilities import LOCAL_SAMPLING, TOOLS
from backends.dialects.openai_compatible import Quirks

#: Servers that answer `/rerank` beside OpenAI's paths.
_RERANK = frozenset({"rerank"})
_NO_SUFFIX = frozenset({"suffix", "reasoning_effort"})
#: What servers of text alone lack: tools, forms of output, several choices, embeddings, images, token ids.
_TEXT_ONLY = (
    TOOLS
    | _NO_SUFFIX
    | {"n", "logprobs", "embeddings", "dimensions", "token_input", "image_url"}
    | {"response_format.json_object", "response_format.json_schema"}
)
#: Of servers whose own default ends an answer after a few tokens.
_CAPPED = frozenset({"needs_output_cap"})
_LLAMA = LOCAL_SAMPLING - {"min_tokens"}
_EOS_TEXTS = ("</s>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>")

_QUIRKS = (
    # OpenAI's own API, and what answers like it.
    Quirks("openai", chat_cap="max_completion_tokens", developer_role=True, base64_vectors=True),
    # An OpenAI-like server of which nothing is known but that it is older than `max_completion_tokens`.
    Quirks("generic", lacks=_NO_SUFFIX, string_content=True),
    # `guided_*` is silently ignored since 0.12; `reasoning` was `reasoning_content`.
    Quirks(
        "vllm",
        adds=frozenset({"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "grammar", "regex"}) | _RERANK,
        chat_cap="max_completion_tokens",
        reasoning_field="reasoning",
        schema_field=("structured_outputs", "json"),
        grammar_field=("structured_outputs", "grammar"),
        choice_field=("structured_outputs", "choice"),
        regex_field=("structured_outputs", "regex"),
        base64_vectors=True,
    ),
    # llama.cpp's `/v1`: best_of and suffix must not even be present; logit_bias pairs work on all versions; the object
    # form of tool_choice is not read; without alternatives it tells no logprobs; with n > 1 or several prompts usage is each
    # choice's own (both seen in xllamacpp).
    Quirks(
        "llamacpp",
        adds=_LLAMA | {"grammar"} | _RERANK,
        lacks=_NO_SUFFIX | {"dimensions"},
        spelling=(("repetition_penalty", "repeat_penalty"), ("min_tokens", "")),
        reasoning_field="reasoning_content",
        logit_bias="pairs",
        named_tool="only",
        grammar_field=("grammar",),
        base64_vectors=True,
        usage_per_choice=True,
        least_top_logprobs=1,
    ),
    # Ollama's `/v1`; prefer the native dialect: here an error in mid-stream is lost upstream.
    Quirks(
        "ollama",
        lacks=frozenset({"n", "logit_bias", "tool_choice", "parallel_tool_calls", "token_input", "logprobs"}),
        reasoning_field="reasoning",
        whole_calls=True,
    ),
    # TGI's Messages API: presence_penalty would become a repetition_penalty, n is ignored, a stream of a tool call may
    # end without finish_reason, `/v1/completions` shows special tokens.
    Quirks(
        "tgi",
        lacks=_NO_SUFFIX | {"presence_penalty", "logit_bias", "n", "embeddings", "token_input", "parallel_tool_calls"},
        spelling=(("presence_penalty", ""), ("repetition_penalty", "")),
        open_top_p=True,
        cut_stops=True,
        eos_texts=_EOS_TEXTS,
    ),
    Quirks(
        "sglang",
        adds=frozenset({"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "grammar", "regex"}) | _RERANK,
        lacks=frozenset({"suffix"}),
        reasoning_field="reasoning_content",
        grammar_field=("ebnf",),
        regex_field=("regex",),
    ),
    # No `[DONE]`; unknown fields are refused, but known ones ignored with a line in its log: response_format,
    # presence_penalty, n and more; frequency_penalty becomes a repetition_penalty. Usage comes unasked on the last chunk.
    # Stop strings end the text and stay in it.
    Quirks(
        "transformers",
        lacks=_NO_SUFFIX
        | {"n", "logit_bias", "logprobs", "embeddings", "token_input", "parallel_tool_calls", "tool_choice"}
        | {"presence_penalty", "frequency_penalty", "response_format.json_object", "response_format.json_schema"},
        spelling=(("frequency_penalty", ""), ("presence_penalty", "")),
        terminator="finish",
        stream_usage=False,
        cut_stops=True,
    ),
    Quirks(
        "localai",
        adds=_LLAMA | {"grammar"} | _RERANK,
        lacks=_NO_SUFFIX | {"logprobs", "token_input"},
        spelling=(("repetition_penalty", "repeat_penalty"), ("min_tokens", "")),
        grammar_field=("grammar",),
    ),
    Quirks(
        "lmdeploy",
        adds=frozenset({"top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "regex"}),
        lacks=_NO_SUFFIX | {"embeddings", "token_input"},
        regex_field=("response_format", "regex_schema"),
        spelling=(("min_tokens", "min_new_tokens"),),
        reasoning_field="reasoning_content",
    ),
    # No usage in streams; errors are 400 with a five-digit code.
    Quirks(
        "fastchat",
        adds=frozenset({"top_k"}),
        lacks=_NO_SUFFIX | TOOLS | {"logit_bias", "response_format.json_object", "response_format.json_schema", "seed"},
        stream_usage=False,
    ),
    # Triton's own OpenAI frontend: completions always say `stop`.
    Quirks(
        "triton",
        lacks=_NO_SUFFIX | {"n", "logit_bias", "response_format.json_object", "response_format.json_schema", "logprobs"},
        infer_length="completions",
    ),
    # `extra="forbid"`: nothing may be sent that it does not know.
    Quirks(
        "trtllm",
        adds=frozenset({"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "grammar", "regex"}),
        lacks=_NO_SUFFIX | {"embeddings"},
        grammar_field=("response_format", "ebnf"),
        regex_field=("response_format", "regex"),
    ),
    # npuichigo's proxy before Triton: `n` would become the beam width, usage is all zeros, `stop` must be a list, the
    # finish reason is always `stop`.
    Quirks(
        "openai_trtllm",
        adds=_CAPPED,
        lacks=_TEXT_ONLY | {"logit_bias"},
        string_content=True,
        stream_usage=False,
        infer_length="always",
        token_chunks=True,
    ),
    # Samplers are fixed when it starts; errors come under 200; usage without the prompt; other reasons say `system`.
    Quirks(
        "mbase",
        lacks=_TEXT_ONLY
        | {"completions", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias"},
        spelling=(("stop", ""),),
        terminator="finish",
        stream_usage=False,
        developer_role=True,
        string_content=True,
        cut_stops=True,
    ),
    # transformers-openai-api by mesolitica: no `/v1` in its paths, no finish reason ever; stop strings that are no
    # single token would be deleted from the text instead of ending it.
    Quirks(
        "mesolitica",
        adds=frozenset({"top_k", "repetition_penalty"}) | _CAPPED,
        lacks=_TEXT_ONLY | {"completions", "seed", "presence_penalty", "frequency_penalty", "logit_bias"},
        spelling=(("stop", ""),),
        terminator="close",
        stream_usage=False,
        string_content=True,
        cut_stops=True,
        token_chunks=True,
    ),
    # llama.cpp's old proxy api_like_OAI.py: one newline an event, a `stop` that is no list is taken apart by letters.
    Quirks(
        "api_like_oai",
        adds=frozenset(
            {"top_k", "typical_p", "repetition_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta"}
        ),
        lacks=_TEXT_ONLY,
        spelling=(("repetition_penalty", "repeat_penalty"),),
        terminator="finish",
        stream_usage=False,
        string_content=True,
        by_line=True,
        tokenizes=True,
    ),
)

#: Quirks by name.
QUIRKS: Mapping[str, Quirks] = MappingProxyType({quirks.name: quirks for quirks in _QUIRKS})
