"""The front's certificate: what is refused, until when one holds, and a renewed one in new handshakes."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import time
from pathlib import Path

import pytest

from gateway.config.certificates import BadCertificate, Certificate, ends_at, read_certificate
from gateway.config.loader import load
from gateway.config.problems import ConfigError
from gateway.edge.renewal import Renewing
from tests.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize("days", [20, 365 * 40])  # UTCTime and, from 2050 on, GeneralizedTime
def test_when_a_certificate_ends(authority: Authority, days: int) -> None:
    cert, key = authority.sign(f"days-{days}", days=days)
    assert abs(read_certificate(cert, key).ends_s - (time.time() + days * 86_400)) < 3600


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate(text: str) -> None:
    with pytest.raises(BadCertificate):
        ends_at(text)


def test_what_cannot_be_used(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.sign("one")
    _, other = authority.sign("two")
    with pytest.raises(BadCertificate, match="belong together"):
        read_certificate(cert, other)
    with pytest.raises(BadCertificate, match="cannot be read"):
        read_certificate(cert, tmp_path / "absent.pem")
    with pytest.raises(BadCertificate, match="no PEM"):
        read_certificate(key, cert)


def shown(context: ssl.SSLContext, trust: Path) -> str:
    """The common name that a client sees in a handshake in memory."""
    client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
    client = ssl.create_default_context(cafile=str(trust)).wrap_bio(client_in, client_out, server_hostname="localhost")
    server = context.wrap_bio(server_in, server_out, server_side=True)
    for _ in range(6):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    found = client.getpeercert()
    assert found
    return next(value for ((name, value),) in found["subject"] if name == "commonName")


def test_a_renewed_certificate_is_in_new_handshakes_and_a_bad_one_changes_nothing(authority: Authority, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    old, new = authority.sign("old"), authority.sign("new")
    shutil.copy(old[0], cert)
    shutil.copy(old[1], key)
    taken: list[Certificate] = []
    refused: list[str] = []
    renewing = Renewing(cert, key, taken.append, refused.append)
    assert shown(renewing.context, authority.file) == "old"

    def replaced(source: Path, target: Path) -> None:
        shutil.copy(source, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)

    replaced(new[0], cert)  # half of the pair
    for now_ms in (1000, 2000):
        renewing.look(now_ms)
    assert refused == ["the certificate and the key do not belong together"]
    assert shown(renewing.context, authority.file) == "old"
    replaced(new[1], key)
    for now_ms in (3000, 4000):
        renewing.look(now_ms)
    assert shown(renewing.context, authority.file) == "new"
    renewing.look(5000)
    assert (len(taken), len(refused)) == (2, 1)


def test_the_configuration_names_what_is_wrong(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.sign("three")
    _, other = authority.sign("four")
    file = tmp_path / "config.yaml"
    file.write_text(f"server: {{tls_cert_file: {cert}, tls_key_file: {key}}}\n")
    assert load(file).certificate_files == (cert, key)
    for text, words in [
        (f"server: {{tls_cert_file: {cert}}}\n", "go together"),
        (f"server: {{tls_cert_file: {cert}, tls_key_file: {other}}}\n", "belong together"),
        (f"server: {{tls_cert_file: absent.pem, tls_key_file: {other}}}\n", "cannot be read"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load(file)
