"""The front's certificate: read from two PEM files, checked as a whole before it is used, and until when it holds."""

from __future__ import annotations

import calendar
import ssl
import time
from pathlib import Path
from typing import NamedTuple

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
#: DER tags (X.690) that are met on the way to a certificate's validity (RFC 5280, section 4.1).
_VERSION, _UTC_TIME = 0xA0, 0x17
#: A UTCTime's two digits are 1950 to 2049 (RFC 5280, 4.1.2.5.1).
_PIVOT = 50


class BadCertificate(Exception):
    """The files cannot be used; the text says why, for whoever operates the gateway."""


class Certificate(NamedTuple):
    """A server context with the certificate in it, and when that ends (Unix seconds)."""

    context: ssl.SSLContext
    ends_s: int


def read_certificate(cert: Path, key: Path) -> Certificate:
    """The certificate chain (the server's own first) and its private key.

    TLS 1.2 or newer; HTTP/1.1 is what is negotiated.

    Raises:
        BadCertificate: a file is absent, holds something else, is encrypted, or the two do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for file in (cert, key):
        try:
            file.read_bytes()
        except OSError as error:
            raise BadCertificate(f"{file} cannot be read: {error.strerror}") from None
    try:
        context.load_cert_chain(cert, key, password="")  # or OpenSSL asks a terminal for one
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate("the certificate and the key do not belong together") from None
        raise BadCertificate("they hold no PEM certificate with its unencrypted key") from None
    return Certificate(context, ends_at(cert.read_text("ascii", "replace")))


def ends_at(pem: str) -> int:
    """When the first certificate of a PEM text ends, Unix seconds.

    Raises:
        BadCertificate: it is none.
    """
    start = pem.find(_BEGIN)
    stop = pem.find(_END, start)
    try:
        outer = ssl.PEM_cert_to_DER_cert(pem[start : stop + len(_END)])
        _, signed, _ = _field(outer, 0)
        _, body, _ = _field(signed, 0)
        tag, _, at = _field(body, 0)
        for _ in range(3 if tag == _VERSION else 2):  # (serial,) algorithm, issuer
            _, _, at = _field(body, at)
        _, validity, _ = _field(body, at)
        _, _, at = _field(validity, 0)
        tag, text, _ = _field(validity, at)
        return _instant(tag, text.decode("ascii"))
    except (ValueError, IndexError):
        raise BadCertificate("it holds no certificate") from None


def _field(data: bytes, at: int) -> tuple[int, bytes, int]:
    """The DER field at an offset: tag, content, and where the next begins."""
    tag, length, at = data[at], data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(data[at : at + count]), at + count
    return tag, data[at : at + length], at + length


def _instant(tag: int, text: str) -> int:
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= _PIVOT else "20") + text
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))
