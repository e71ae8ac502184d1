"""Keys as text, and the pepper's file."""

import hashlib
import hmac
import re
from pathlib import Path

import pytest

from gateway.auth import keys
from gateway.auth.pepper import load_or_create_pepper

PEPPER = b"p" * 32
RANDOM = bytes(range(42))


def test_a_minted_key_has_the_documented_form() -> None:
    minted = keys.mint(PEPPER, RANDOM)
    assert re.fullmatch(r"sk-sy-[a-z2-7]{16}-[a-z2-7]{52}-[a-z2-7]{16}", minted.secret)
    assert len(minted.secret) == keys.KEY_LENGTH == 92
    assert minted.secret.split("-")[2] == minted.id == keys.public_id(minted.secret.encode())
    assert keys.is_genuine(PEPPER, minted.secret.encode())


def test_repr_and_public_id_hide_the_secret() -> None:
    minted = keys.mint(PEPPER, RANDOM)
    secret = minted.secret.split("-")[3]
    assert secret not in repr(minted) and secret not in f"{minted}" and secret not in minted.id


def test_another_pepper_makes_another_mac_and_hash() -> None:
    key = keys.mint(PEPPER, RANDOM).secret.encode()
    assert not keys.is_genuine(b"q" * 32, key)
    assert keys.stored_hash(b"q" * 32, key) != keys.stored_hash(PEPPER, key)


def test_hashes_are_the_documented_functions() -> None:
    key = keys.mint(PEPPER, RANDOM).secret.encode()
    assert keys.stored_hash(PEPPER, key) == hmac.new(PEPPER, key, hashlib.sha256).hexdigest()
    assert keys.text_hash(key) == hashlib.sha256(key).hexdigest()


def test_the_mac_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return real(a, b)

    key = keys.mint(PEPPER, RANDOM).secret.encode()
    forged = key[:-1] + (b"a" if key[-1:] != b"a" else b"b")
    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert not keys.is_genuine(PEPPER, forged)
    assert [len(a) == len(b) == 16 for a, b in seen] == [True]


def test_a_stored_hash_is_not_a_credential() -> None:
    key = keys.mint(PEPPER, RANDOM).secret.encode()
    assert not keys.is_genuine(PEPPER, keys.stored_hash(PEPPER, key).encode())


@pytest.mark.parametrize(
    "text",
    [b"", b"sk-sy-", b"sk-" + b"a" * 89, b"'; DROP TABLE keys; --", b"\x00" * 92, b"\xff" * 92, b"a" * 8192, "clé".encode()],
)
def test_other_texts_are_no_keys(text: bytes) -> None:
    assert keys.public_id(text) is None
    assert not keys.is_genuine(PEPPER, text)


@pytest.mark.parametrize(("pepper", "randomness"), [(b"", RANDOM), (b"short", RANDOM), (b"x" * 31, RANDOM)])
def test_minting_refuses_a_weak_pepper(pepper: bytes, randomness: bytes) -> None:
    with pytest.raises(keys.WeakPepper, match="at least 32"):
        keys.mint(pepper, randomness)


def test_minting_refuses_too_little_randomness() -> None:
    with pytest.raises(ValueError, match="42 random bytes"):
        keys.mint(PEPPER, b"x" * 41)


def test_declared_hashes() -> None:
    digest = hashlib.sha256(b"my key").hexdigest()
    assert keys.declared_hash("sha256:" + digest.upper()) == digest == keys.text_hash(b"my key")


@pytest.mark.parametrize("text", ["", "my-own-key", "sha256:", "sha256:" + "g" * 64, "sha256:" + "a" * 63, "a" * 64])
def test_a_bad_declaration_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits") as caught:
        keys.declared_hash(text)
    assert not text or "my-own-key" not in str(caught.value)


def test_the_pepper_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pepper"
    first = load_or_create_pepper(path)
    assert len(first) == 64 and load_or_create_pepper(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["pepper"]


@pytest.mark.parametrize("content", [b"", b"\n", b"tooshort\n"])
def test_a_weak_pepper_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pepper"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(keys.WeakPepper, match="pepper file"):
        load_or_create_pepper(path)


def test_a_pepper_file_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    path.write_bytes(b"x" * 64)
    path.chmod(0o644)
    with pytest.raises(keys.WeakPepper, match="chmod 600"):
        load_or_create_pepper(path)
