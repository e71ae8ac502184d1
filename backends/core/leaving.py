"""Word that nobody waits for an answer any more, from who asked for it to whoever talks to a server for it. Pure.

Closing a connection loses what the server has already written into it, and with it the count of what was generated. So
leaving has two steps: `leave` asks each server to stop at once; the stream is then read on as before, until the server
has heard it or the seconds that `leave` told are over; then it is left like any other.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class Party(Protocol):
    """Who talks to a server."""

    def part(self) -> float:
        """Ask the server to stop, at once and without waiting.

        Returns:
            For how many seconds it is worth reading on; 0 = nothing can come any more.
        """


class Leaving(msgspec.Struct, eq=False):
    """One request's. `gone`: nobody waits for its answer any more."""

    gone: bool = False
    parties: list[Party] = []

    def join(self, party: Party) -> bool:
        """Be told. False: it is too late, nothing is to be begun."""
        self.parties.append(party)
        return not self.gone

    def leave(self) -> float:
        """Tell everyone; how long it is worth reading on, seconds. 0 = not at all."""
        self.gone = True
        return max([party.part() for party in self.parties], default=0.0)
