"""The API over TLS: a renewed certificate reaches new connections, and an open stream goes on with the old one."""

from __future__ import annotations

import shutil
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.gateway_process import declared_key
from tests.tls_gateway import TlsGateway
from tests.upstream import in_thread, upstream_server

KEY = "sk-tls-0123456789abcdef0123"


def shown(gateway: TlsGateway) -> str:
    """The common name of the certificate that a new connection is shown."""
    import socket

    with (
        socket.create_connection(("127.0.0.1", gateway.port), 5) as raw,
        gateway.trust.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        assert (connection.version() or "") >= "TLSv1.2"
        found = connection.getpeercert()
        assert found
        return str(next(value for ((name, value),) in found["subject"] if name == "commonName"))


@pytest.mark.timeout(120)
def test_a_renewal_without_a_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for source, target in zip(authority.sign("old"), (cert, key), strict=True):
        shutil.copy(source, target)
    with in_thread(upstream_server) as upstream:
        tree: dict[str, object] = {
            "server": {"tls_cert_file": str(cert), "tls_key_file": str(key)},
            "deployments": {"far": {"dialect": "openai_compatible", "base_url": upstream.url, "model": "words-30-d200"}},
            "models": {"chat": {"tiers": [["far"]]}},
            "keys": {"declared": [declared_key("user", KEY)]},
        }
        gateway = TlsGateway(tmp_path / "gateway", tree)
        gateway.trust = ssl.create_default_context(cafile=str(authority.file))
        with gateway.start():
            assert shown(gateway) == "old"
            assert gateway.metric("switchyard_certificate_end_timestamp_seconds") > time.time()
            ask = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
            headers = {"authorization": f"Bearer {KEY}"}
            with (
                httpx.Client(verify=gateway.trust, timeout=30, headers=headers) as http,
                http.stream("POST", gateway.url + "/v1/chat/completions", json=ask) as answer,
            ):
                assert answer.status_code == 200
                lines = answer.iter_lines()
                next(lines)
                for source, target in zip(authority.sign("new"), (cert, key), strict=True):
                    shutil.copy(source, target)
                deadline = time.monotonic() + 20
                while shown(gateway) != "new":
                    assert time.monotonic() < deadline, gateway.tail()
                    time.sleep(0.2)
                assert [line for line in lines if line][-1] == "data: [DONE]"  # the old handshake's stream is whole
            assert len(gateway.events("certificate_taken")) == 2
            # plain HTTP on the TLS port is no HTTP answer, and harms nobody
            with pytest.raises((urllib.error.URLError, OSError)):
                urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/health/live", timeout=5)
            with pytest.raises(ssl.SSLError):
                old = ssl.create_default_context(cafile=str(authority.file))
                old.maximum_version = ssl.TLSVersion.TLSv1_1
                gateway.trust, trust = old, gateway.trust
                try:
                    shown(gateway)
                finally:
                    gateway.trust = trust
            assert gateway.get("/health/live")[0] == 200
