"""One request on a connection: what is left of it when it is over."""

import gc
import weakref
from collections.abc import Iterable

from gateway.edge.cycle import Cycle


class Connection:
    """Takes what a cycle says."""

    write_paused = False

    def write(self, data: bytes, /) -> None:
        pass

    def common_headers(self) -> Iterable[tuple[bytes, bytes]]:
        return ()

    async def drained(self) -> None:
        pass

    def body_wanted(self, cycle: Cycle, /) -> None:
        pass

    def body_unwanted(self) -> None:
        pass

    def finished(self, cycle: Cycle, /) -> None:
        pass

    def abort(self) -> None:
        pass


class Party:
    """Knows the cycle that asks it."""

    def __init__(self, cycle: Cycle) -> None:
        self.cycle = cycle

    def ends(self) -> bool:
        return True


def test_an_answered_request_needs_no_collector() -> None:
    cycle = Cycle(Connection(), keep_alive=True, http10=False, head_only=False, expects=False, length=0)
    party = Party(cycle)
    cycle.ends_when_gone = party.ends
    cycle.end()
    seen = weakref.ref(party)
    gc.disable()
    try:
        cycle.respond(200, [], b"")
        del cycle, party
        assert seen() is None
    finally:
        gc.enable()
