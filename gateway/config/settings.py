"""A loaded configuration: the static half for this process's life, the snapshot until the next reload."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.config.snapshot import Snapshot
from gateway.config.static import Static


class Configuration(msgspec.Struct, frozen=True):
    """What `gateway.app` is started with.

    `static` has its references resolved and its defaults filled in: `ledger.url` and `server.run_dir` are never None,
    `auth.pepper` may be (see `gateway.config.pepper`). `file` is None for the embedded default. Relative paths were
    taken from `base`. `embedded`: one process, no Redis.
    """

    static: Static
    snapshot: Snapshot
    base: Path
    state_dir: Path
    run_dir: Path
    ledger_url: str
    redis_url: str | None = None
    file: Path | None = None

    @property
    def embedded(self) -> bool:
        """Whether limits live in the one worker process."""
        return self.redis_url is None

    @property
    def certificate_files(self) -> tuple[Path, Path] | None:
        """The API's certificate chain and key, None for plain HTTP."""
        cert, key = self.static.server.tls_cert_file, self.static.server.tls_key_file
        return None if cert is None or key is None else (self.base / cert, self.base / key)

    def __repr__(self) -> str:
        return f"Configuration(file={str(self.file)!r}, version={self.snapshot.version!r})"
