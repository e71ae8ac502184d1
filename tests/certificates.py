"""A certificate authority of our own and what it signs, made by the openssl program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    """A CA in a folder; `file` is what clients trust."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl binary to make a certificate with")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "ca.pem"
        self._key = folder / "ca-key.pem"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._curve = curve
        subject = ["-subj", "/CN=Test authority", "-addext", "keyUsage=critical,keyCertSign"]
        self._run("req", "-x509", *curve, "-days", "30", *subject, "-keyout", str(self._key), "-out", str(self.file))

    def sign(self, name: str, *, days: int = 20, host: str = "localhost") -> tuple[Path, Path]:
        """A certificate chain and its key, as `NAME.pem` and `NAME-key.pem`; its common name is `name`."""
        cert, key, request = (self.folder / f"{name}{end}.pem" for end in ("", "-key", "-request"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{host},IP:127.0.0.1\n")
        self._run("req", *self._curve, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request))
        signing = ["-CA", str(self.file), "-CAkey", str(self._key), "-CAcreateserial", "-extfile", str(extensions)]
        self._run("x509", "-req", "-in", str(request), *signing, "-days", str(days), "-out", str(cert))
        return cert, key

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
