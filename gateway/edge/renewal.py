"""A renewed certificate without a restart: new handshakes get it, open connections keep the old one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from gateway.config.certificates import BadCertificate, Certificate, read_certificate
from gateway.config.watcher import Watcher, stamp_of

#: Between two looks at the files.
LOOK_S = 1.0


class Renewing:
    """The front's certificate as it is now. `context` is what the listener gets, once and for all.

    A handshake asks for the server's name even where the client states none (ssl, `sni_callback`), and is given the
    present context there. So a new one is read apart and taken as a whole; a bad one changes nothing.

    Args:
        cert, key: PEM files.
        taken: told of each certificate that is taken into use.
        refused: told why changed files are not.

    Raises:
        BadCertificate: the files cannot be used.
    """

    def __init__(self, cert: Path, key: Path, taken: Callable[[Certificate], object], refused: Callable[[str], object]) -> None:
        self._files = (cert, key)
        self._taken, self._refused = taken, refused
        self._watchers = [Watcher(stamp_of(file)) for file in self._files]
        first = read_certificate(cert, key)
        self.context = first.context
        self._present = first.context
        self.context.sni_callback = self._choose
        taken(first)

    def look(self, now_ms: int) -> None:
        """Read the files again when one has changed and both are left alone."""
        changed = [watcher.look(stamp_of(file), now_ms) for watcher, file in zip(self._watchers, self._files, strict=True)]
        if not any(changed):
            return
        try:
            found = read_certificate(*self._files)
        except BadCertificate as error:
            self._refused(str(error))
            return
        self._present = found.context
        self._taken(found)

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            self.look(int(loop.time() * 1000))

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self._present
