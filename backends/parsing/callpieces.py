"""Tool calls out of pieces: numbered within their choice, each with one id that is unique within the answer.

Servers leave ids out, repeat them on every piece, give every call the id "0" (TGI) or the index 0 (Ollama's `/v1`),
or send a call whole. Out come pieces as `ToolCallDelta` wants them: id and name once, first.
"""

from __future__ import annotations

import msgspec

from backends.core.events import ToolCallDelta


class CallIds:
    """The ids given out within one answer. Ids of ours are `call_<n>`: no randomness, the same for the same answer."""

    def __init__(self, first: int = 0) -> None:
        """`first`: the number of the first id of ours."""
        self._used: set[str] = set()
        self._first = first

    def claim(self, wanted: str) -> str:
        """The backend's id when it is the first to bear it, else one of ours."""
        if not wanted or wanted in self._used:
            number = self._first + len(self._used)
            while (wanted := f"call_{number}") in self._used:
                number += 1
        self._used.add(wanted)
        return wanted


class _Call(msgspec.Struct):
    upstream_id: str
    number: int = -1
    name: str = ""
    held: str = ""
    silent: bool = True


class CallPieces:
    """The tool calls of one choice. `count`: those that have a name; `nameless`: those with arguments and no name yet."""

    def __init__(self, choice: int, ids: CallIds) -> None:
        self._choice = choice
        self._ids = ids
        self._by_index: dict[int, _Call] = {}
        self._last: _Call | None = None
        self._silent: list[_Call] = []
        self.count = 0
        self.nameless = 0

    def feed(self, index: int | None, id: str, name: str, arguments: str, *, whole: bool = False) -> ToolCallDelta | None:
        """Take one piece.

        Args:
            index: the call's number as the backend counts, None when it does not.
            id: its id, "" when absent.
            name: the function's name, "" when absent.
            arguments: a fragment of the arguments' JSON.
            whole: the piece is a call of its own, whatever its index says.

        Returns:
            The piece to pass on; None when it says nothing new, or while the call has no name yet.
        """
        call = None if whole else self._find(index, id, name)
        if call is None:
            call = _Call(id)
        if index is not None:
            self._by_index[index] = call
        self._last = call
        if arguments:
            call.silent = False
        if call.name:
            return ToolCallDelta(call.number, arguments=arguments, choice=self._choice) if arguments else None
        call.upstream_id = call.upstream_id or id
        held, call.held = call.held, call.held + arguments
        if not name:
            self.nameless += bool(arguments) and not held
            return None
        self.nameless -= bool(held)
        call.name = name
        call.number = self.count
        self.count += 1
        self._silent.append(call)
        return ToolCallDelta(call.number, self._ids.claim(call.upstream_id), name, call.held, self._choice)

    def close(self) -> list[ToolCallDelta]:
        """The end of a choice that was not cut: a call without any arguments has an empty object of them."""
        silent, self._silent = [call for call in self._silent if call.silent], []
        return [ToolCallDelta(call.number, arguments="{}", choice=self._choice) for call in silent]

    def _find(self, index: int | None, id: str, name: str) -> _Call | None:
        """The call that this piece goes on with, None when it begins one."""
        call = self._last if index is None else self._by_index.get(index)
        if call is None:
            return None
        other = bool(id) and bool(call.upstream_id) and id != call.upstream_id
        if name and call.name and (other or (index is None and id != call.upstream_id)):
            return None
        if index is None and name and call.name and not id:
            return None
        return call
