"""Choosing tokens: one sampler chain of llama.cpp's per choice, and a grammar beside it.

Parameters that a client left out take the defaults of llama.cpp (common/common.h of llama-cpp-python 0.3.36:
temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, repeat_last_n 64, mirostat tau 5 and eta 0.1).

A grammar is checked after the choice, on the one token; only when it refuses, the whole vocabulary is filtered by it
and the choice repeated: filtering costs milliseconds, most choices are right.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import llama_cpp as llama
import numpy as np

from backends.core.errors import BadRequest
from backends.core.request import Sampling
from backends.engines.llamacpp.forms.asked import Grammar
from backends.engines.llamacpp.model import Model, complaints

_ENTRY = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_BAN = -math.inf


class NoTokenFits(Exception):
    """The grammar allows nothing any more: the answer is complete."""


class Sampler:
    """One choice's sampler. `free` it once."""

    def __init__(self, model: Model, sampling: Sampling, *, seed: int, prompt: Sequence[int], grammar: Grammar | None) -> None:
        """Raises BadRequest when the grammar cannot be read or a token id of logit_bias does not exist."""
        self._model = model
        self._grammar = None
        if grammar is not None:
            self._grammar = llama.llama_sampler_init_grammar(model.vocab, grammar.text.encode("utf-8", "replace"), b"root")
            if not self._grammar:
                complaints()
                raise BadRequest(f"llama.cpp cannot read the grammar of '{grammar.param}'.", param=grammar.param)
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        self._ends_banned = 0
        self._likeliest = grammar is None and _only_likeliest(sampling)
        try:
            self._add_biases(sampling)
        except BadRequest:
            self.free()
            raise
        self._add_penalties(sampling, prompt)
        self._add_choice(sampling, seed)

    def _add(self, sampler: object) -> None:
        llama.llama_sampler_chain_add(self._chain, sampler)

    def _add_biases(self, sampling: Sampling) -> None:
        self._ends_banned = -1 if sampling.ignore_eos else (sampling.min_tokens or 0)
        if self._ends_banned and self._model.ends:
            self._add(self._bias([(token, _BAN) for token in self._model.ends]))
        else:
            self._ends_banned = 0
        for token, _ in sampling.logit_bias:
            if not 0 <= token < self._model.size:
                raise BadRequest(f"The model has no token {token}.", param="logit_bias")
        if sampling.logit_bias:
            # -100 means "never" (OpenAI API reference, logit_bias)
            self._add(self._bias([(token, _BAN if bias <= -100 else bias) for token, bias in sampling.logit_bias]))

    def _bias(self, biases: list[tuple[int, float]]) -> object:
        array = (llama.llama_logit_bias * len(biases))(*(llama.llama_logit_bias(token, bias) for token, bias in biases))
        return llama.llama_sampler_init_logit_bias(self._model.size, len(biases), array)

    def _add_penalties(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        context = self._model.trained_context
        if sampling.repetition_penalty not in (None, 1.0):
            last = 64 if sampling.repeat_last_n is None else sampling.repeat_last_n
            last = context if last < 0 else min(last, context)
            repetition = llama.llama_sampler_init_penalties(self._model.size, last, sampling.repetition_penalty, 0.0, 0.0)
            for token in prompt[-last:] if last else ():
                llama.llama_sampler_accept(repetition, token)
            self._add(repetition)
        presence, frequency = sampling.presence_penalty or 0.0, sampling.frequency_penalty or 0.0
        if presence or frequency:
            # of the answer's own tokens only, all of them, as OpenAI defines the two
            self._add(llama.llama_sampler_init_penalties(self._model.size, context, 1.0, frequency, presence))

    def _add_choice(self, sampling: Sampling, seed: int) -> None:
        temperature = 0.8 if sampling.temperature is None else sampling.temperature
        if temperature <= 0:
            self._add(llama.llama_sampler_init_greedy())
            return
        if sampling.mirostat:
            tau = 5.0 if sampling.mirostat_tau is None else sampling.mirostat_tau
            eta = 0.1 if sampling.mirostat_eta is None else sampling.mirostat_eta
            self._add(llama.llama_sampler_init_temp(temperature))
            if sampling.mirostat == 1:
                self._add(llama.llama_sampler_init_mirostat(self._model.size, seed, tau, eta, 100))
            else:
                self._add(llama.llama_sampler_init_mirostat_v2(seed, tau, eta))
            return
        top_k = 40 if sampling.top_k is None else sampling.top_k
        top_p = 0.95 if sampling.top_p is None else sampling.top_p
        min_p = 0.05 if sampling.min_p is None else sampling.min_p
        if top_k > 0:
            self._add(llama.llama_sampler_init_top_k(top_k))
        if sampling.typical_p not in (None, 1.0):
            self._add(llama.llama_sampler_init_typical(sampling.typical_p, 1))
        if top_p < 1:
            self._add(llama.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0:
            self._add(llama.llama_sampler_init_min_p(min_p, 1))
        self._add(llama.llama_sampler_init_temp(temperature))
        self._add(llama.llama_sampler_init_dist(seed))

    def sample(self, context: object, row: int, made: int) -> int:
        """The next token from a row of the last batch. `made`: tokens of this choice so far.

        Raises:
            NoTokenFits: the grammar allows none.
        """
        if 0 < self._ends_banned <= made:
            llama.llama_sampler_free(llama.llama_sampler_chain_remove(self._chain, 0))
            self._ends_banned = 0
        if self._likeliest:
            return self._best(context, row)
        if self._grammar is None:
            return int(llama.llama_sampler_sample(self._chain, context, row))
        return self._sample_by_grammar(context, row)

    def _best(self, context: object, row: int) -> int:
        """What the chain would choose, without a candidate for each token of the vocabulary: a tenth of the time."""
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, row), (self._model.size,))
        token = int(logits.argmax())
        if self._ends_banned and self._model.ends_generation(token):
            rest = logits.copy()
            rest[self._model.ends] = _BAN
            token = int(rest.argmax())
        return token

    def _sample_by_grammar(self, context: object, row: int) -> int:
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, row), (self._model.size,))
        token = self._choose(self._entries(logits))
        if not self._allowed(token):
            entries = self._entries(logits)
            llama.llama_sampler_apply(self._grammar, ctypes.byref(_array(entries)))
            if self._ends_banned:
                entries["logit"][self._model.ends] = _BAN
            if entries["logit"].max() == _BAN:
                raise NoTokenFits
            token = self._choose(entries)
            if not self._allowed(token):  # banned by the request's own bias: accepting it would abort llama.cpp
                raise NoTokenFits
        llama.llama_sampler_accept(self._grammar, token)
        llama.llama_sampler_accept(self._chain, token)
        return token

    def _entries(self, logits: np.ndarray) -> np.ndarray:
        entries = np.zeros(self._model.size, _ENTRY)
        entries["id"] = np.arange(self._model.size, dtype=np.int32)
        entries["logit"] = logits
        return entries

    def _choose(self, entries: np.ndarray) -> int:
        array = _array(entries)
        llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allowed(self, token: int) -> bool:
        if self._ends_banned and self._model.ends_generation(token):
            return False
        one = np.array([(token, 1.0, 0.0)], _ENTRY)
        llama.llama_sampler_apply(self._grammar, ctypes.byref(_array(one)))
        return bool(one["logit"][0] != _BAN)

    def free(self) -> None:
        """Release it."""
        llama.llama_sampler_free(self._chain)
        if self._grammar is not None:
            llama.llama_sampler_free(self._grammar)


def _only_likeliest(sampling: Sampling) -> bool:
    """Whether the largest logit decides, but for ends that are banned."""
    temperature = 0.8 if sampling.temperature is None else sampling.temperature
    penalties = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty not in (None, 1.0)
    return temperature <= 0 and not sampling.logit_bias and not penalties


def _array(entries: np.ndarray) -> llama.llama_token_data_array:
    """llama.cpp's view of the entries; they must outlive it."""
    data = ctypes.cast(entries.ctypes.data, ctypes.POINTER(llama.llama_token_data))
    return llama.llama_token_data_array(data, len(entries), -1, False)
