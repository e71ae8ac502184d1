"""Keys as text: mint, recognise by arithmetic, hash. Pure: randomness and the pepper are arguments.

    sk-sy-<public id>-<secret>-<mac>          92 characters of [a-z2-7-], all parts base32
           16 chars    52       16
           80 bits     256      80

The public id names the key in logs and reports and is no secret. The MAC, under the gateway's pepper, lets a forged
key be refused without asking a database. What is stored is HMAC-SHA256(pepper, whole key): a stolen table without the
pepper neither verifies a guess nor is itself a credential.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b32encode

import msgspec

PREFIX = b"sk-sy-"
PUBLIC_BYTES, SECRET_BYTES, MAC_BYTES = 10, 32, 10
_PUBLIC_CHARS, _SECRET_CHARS, _MAC_CHARS = 16, 52, 16
_SECRET_AT = len(PREFIX) + _PUBLIC_CHARS + 1
_MAC_AT = _SECRET_AT + _SECRET_CHARS + 1
KEY_LENGTH = _MAC_AT + _MAC_CHARS
#: Randomness of one key, in bytes: the public id's, then the secret's.
RANDOM_BYTES = PUBLIC_BYTES + SECRET_BYTES
#: A shorter pepper is refused: it could be searched for.
PEPPER_MIN_BYTES = 32
DECLARED_PREFIX = "sha256:"
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567"
# Parts the MAC's input from the stored hash's, which is taken over the whole key: a key begins with "sk-", not "mac".
_MAC_DOMAIN = b"mac1:"


class WeakPepper(ValueError):
    """The pepper is absent or too short to protect anything."""


class MintedKey(msgspec.Struct, frozen=True):
    """A new key. `secret` is the whole key text, shown once; `repr` does not show it."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"MintedKey({self.id!r})"


def check_pepper(pepper: bytes) -> bytes:
    """The pepper itself, when it is long enough.

    Raises:
        WeakPepper: shorter than 32 bytes.
    """
    if len(pepper) < PEPPER_MIN_BYTES:
        raise WeakPepper(f"the key pepper has {len(pepper)} bytes; at least {PEPPER_MIN_BYTES} random bytes are needed")
    return pepper


def mint(pepper: bytes, randomness: bytes) -> MintedKey:
    """A key from `RANDOM_BYTES` (42) bytes of a cryptographic source.

    Raises:
        WeakPepper: the pepper is too short.
        ValueError: not exactly 42 bytes of randomness.
    """
    check_pepper(pepper)
    if len(randomness) != RANDOM_BYTES:
        raise ValueError(f"a key takes {RANDOM_BYTES} random bytes, not {len(randomness)}")
    public = _base32(randomness[:PUBLIC_BYTES])
    body = PREFIX + public + b"-" + _base32(randomness[PUBLIC_BYTES:])
    return MintedKey(public.decode(), (body + b"-" + _mac(pepper, body)).decode())


def public_id(key: bytes) -> str | None:
    """The public id of a text that has a minted key's form (its MAC is not looked at), else None."""
    if len(key) != KEY_LENGTH or not key.startswith(PREFIX) or key[_SECRET_AT - 1] != 45 or key[_MAC_AT - 1] != 45:
        return None
    public = key[len(PREFIX) : _SECRET_AT - 1]
    if (public + key[_SECRET_AT : _MAC_AT - 1] + key[_MAC_AT:]).translate(None, _ALPHABET):
        return None
    return public.decode("ascii")


def is_genuine(pepper: bytes, key: bytes) -> bool:
    """Whether the text has a minted key's form and carries this pepper's MAC; compared in constant time."""
    if public_id(key) is None:
        return False
    return hmac.compare_digest(_mac(pepper, key[: _MAC_AT - 1]), key[_MAC_AT:])


def stored_hash(pepper: bytes, key: bytes) -> str:
    """What the database keeps of a minted key: HMAC-SHA256(pepper, whole key), 64 hex digits."""
    return hmac.digest(pepper, key, "sha256").hex()


def text_hash(key: bytes) -> str:
    """SHA-256 of a key's text, 64 hex digits: how configuration declares a key, and how memory looks one up."""
    return hashlib.sha256(key).hexdigest()


def declared_hash(text: str) -> str:
    """The 64 hex digits of a declaration `sha256:<hex>`, lower case.

    Raises:
        ValueError: another form; the message does not repeat the text, which may be a key put there by mistake.
    """
    digits = text.removeprefix(DECLARED_PREFIX).lower()
    if not text.startswith(DECLARED_PREFIX) or len(digits) != 64 or digits.strip("0123456789abcdef"):
        raise ValueError("a declared key is `sha256:` and the 64 hex digits of the key text's SHA-256")
    return digits


def _mac(pepper: bytes, body: bytes) -> bytes:
    return _base32(hmac.digest(pepper, _MAC_DOMAIN + body, "sha256")[:MAC_BYTES])


def _base32(data: bytes) -> bytes:
    return b32encode(data).rstrip(b"=").lower()
