"""TLS to a server with a certificate of our own making."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends.core.errors import (
    UpstreamUnavailable,
)
from backends.remote.origin import Origin, tls_context
from backends.remote.pool import HttpPool
from tests.integration.remote.pools import always_ok, fetch
from tests.raw_upstream import raw_upstream


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for `localhost` and its key."""
    binary = shutil.which("openssl")
    if binary is None:
        pytest.skip("no openssl binary to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [binary, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@asynccontextmanager
async def tls_served(certificate: tuple[Path, Path], host: str, trust: ssl.SSLContext) -> AsyncIterator[HttpPool]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with asyncio.timeout(10), raw_upstream(always_ok, context) as upstream:
        pool = HttpPool(Origin.parse(f"https://{host}:{upstream.port}/v1"), tls=trust)
        try:
            yield pool
        finally:
            await pool.aclose()


async def test_tls_with_an_authority_of_our_own(certificate: tuple[Path, Path]) -> None:
    async with tls_served(certificate, "localhost", tls_context(ca_file=str(certificate[0]))) as pool:
        assert await fetch(pool) == (200, b"ok")
        assert await fetch(pool) == (200, b"ok")
        assert pool.connections == (1, 1)


@pytest.mark.parametrize("case", ["unknown authority", "other name"])
async def test_tls_that_cannot_be_trusted(certificate: tuple[Path, Path], case: str) -> None:
    host = "localhost" if case == "unknown authority" else "127.0.0.1"
    trust = tls_context() if case == "unknown authority" else tls_context(ca_file=str(certificate[0]))
    async with tls_served(certificate, host, trust) as pool:
        with pytest.raises(UpstreamUnavailable) as caught:
            await fetch(pool)
        assert "localhost" not in caught.value.message


async def test_tls_unverified_when_told_so(certificate: tuple[Path, Path]) -> None:
    async with tls_served(certificate, "127.0.0.1", tls_context(verify=False)) as pool:
        assert await fetch(pool) == (200, b"ok")
