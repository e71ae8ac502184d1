"""One llama_context and its batch: rows are written through numpy views, and a running step can be cut short."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp as llama
import numpy as np

from backends.engines.llamacpp.model import Model, complaints
from backends.engines.options import EngineLoadFailed

OK, NO_ROOM, ABORTED = 0, 1, 2
# llama.cpp asks its abort callback at every node of the graph, from a thread of its own. A Python function there would
# take the GIL each time, so the callback is C's strlen over one byte of ours: 0 while that byte is NUL, 1 when not.
_STRLEN = ctypes.cast(ctypes.CDLL(None).strlen, llama.ggml_abort_callback)


class Context:
    """A context of `sequences` sequences. `positions` is the memory's room in tokens, all sequences together."""

    def __init__(
        self, model: Model, *, positions: int, sequences: int, rows: int, threads: int, pooling: int | None = None
    ) -> None:
        """`pooling` not None: for embeddings.

        Raises:
            EngineLoadFailed: llama.cpp cannot make it (memory, mostly).
        """
        params = llama.llama_context_default_params()
        params.n_ctx = positions
        params.n_batch = params.n_ubatch = rows
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.no_perf = True
        if pooling is not None:
            params.embeddings = True
            params.pooling_type = pooling
        self._halt = ctypes.create_string_buffer(2)
        self._cuttable = self._was_cut = False
        params.abort_callback = _STRLEN
        params.abort_callback_data = ctypes.addressof(self._halt)
        self.handle = llama.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise EngineLoadFailed(f"llama.cpp cannot make a context: {complaints() or 'no reason given'}")
        self.memory = llama.llama_get_memory(self.handle)
        self.rows = rows
        self._batch = llama.llama_batch_init(rows, 0, 1)
        view = np.ctypeslib.as_array
        self._token = view(self._batch.token, (rows,))
        self._position = view(self._batch.pos, (rows,))
        self._wanted = view(self._batch.logits, (rows,))
        view(self._batch.n_seq_id, (rows,))[:] = 1
        self._sequence = [self._batch.seq_id[row] for row in range(rows)]  # int32* per row, mallocs of their own
        self.filled = 0

    def clear(self) -> None:
        """Begin a batch."""
        self.filled = 0

    def add(self, slot: int, tokens: Sequence[int], position: int, *, every: bool = False, last: bool = False) -> int:
        """Append rows of a sequence; of which outputs are wanted: `every` one's, or the `last` one's. That row's number."""
        begin, end = self.filled, self.filled + len(tokens)
        self._token[begin:end] = tokens
        self._position[begin:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._wanted[begin:end] = every
        if last:
            self._wanted[end - 1] = 1
        for row in range(begin, end):
            self._sequence[row][0] = slot
        self.filled = end
        return end - 1

    def decode(self, *, cuttable: bool) -> int:
        """Run the batch: OK, NO_ROOM or ABORTED; anything else is fatal. `cuttable`: `hurry` may end it, but no two in a row.

        Raises:
            RuntimeError: llama.cpp failed; the context is of no further use.
        """
        self._halt[0] = b"\x00"
        self._cuttable = cuttable and not self._was_cut
        self._batch.n_tokens = self.filled
        run = llama.llama_decode if self.memory else llama.llama_encode
        code = int(run(self.handle, self._batch))
        self._cuttable = False
        self._was_cut = code == ABORTED
        if code not in (OK, NO_ROOM, ABORTED):
            raise RuntimeError(f"llama.cpp failed with {code}: {complaints()}")
        return code

    def hurry(self) -> None:
        """Cut the running step short where it may be; any thread may call this."""
        if self._cuttable:
            self._halt[0] = b"\x01"

    def logits(self, row: int, size: int) -> np.ndarray:
        """A view of a row's logits, valid until the next batch."""
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self.handle, row), (size,))

    def cut(self, slot: int, keep: int) -> bool:
        """Remove a sequence's memory from position `keep` on. False: this model cannot remove parts."""
        return bool(llama.llama_memory_seq_rm(self.memory, slot, keep, -1))

    def copy(self, source: int, target: int, count: int) -> None:
        """Let a sequence share the first `count` positions of another."""
        llama.llama_memory_seq_cp(self.memory, source, target, 0, count)

    def lift(self, slot: int) -> np.ndarray | None:
        """A copy of a sequence's memory; None when there is no room for one."""
        size = int(llama.llama_state_seq_get_size(self.handle, slot))
        try:
            copied = np.empty(size, np.uint8)
        except MemoryError:
            return None
        return copied if llama.llama_state_seq_get_data(self.handle, _bytes(copied), size, slot) == size else None

    def put_back(self, slot: int, copied: np.ndarray) -> bool:
        """Give a sequence the memory of a copy, in place of its own. False: there is no room for it; it then has none."""
        if llama.llama_state_seq_set_data(self.handle, _bytes(copied), copied.size, slot) == copied.size:
            return True
        complaints()
        self.cut(slot, 0)
        return False

    def close(self) -> None:
        """Free it."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self.handle)


def _bytes(array: np.ndarray) -> object:
    """llama.cpp's view of the bytes; they must outlive it."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
