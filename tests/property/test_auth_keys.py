"""Keys for any randomness: genuine as minted, forged after any single change."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import keys

PEPPERS = st.binary(min_size=32, max_size=64)
RANDOMNESS = st.binary(min_size=keys.RANDOM_BYTES, max_size=keys.RANDOM_BYTES)


@given(PEPPERS, RANDOMNESS)
def test_what_was_minted_is_genuine_and_has_its_id(pepper: bytes, randomness: bytes) -> None:
    minted = keys.mint(pepper, randomness)
    assert keys.is_genuine(pepper, minted.secret.encode())
    assert keys.public_id(minted.secret.encode()) == minted.id


@given(PEPPERS, RANDOMNESS, st.integers(0, keys.KEY_LENGTH - 1), st.integers(0, 255))
def test_any_changed_byte_is_refused(pepper: bytes, randomness: bytes, at: int, byte: int) -> None:
    key = bytearray(keys.mint(pepper, randomness).secret.encode())
    if key[at] != byte:
        key[at] = byte
        assert not keys.is_genuine(pepper, bytes(key))


@given(PEPPERS, st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_never_raise(pepper: bytes, text: bytes) -> None:
    assert not keys.is_genuine(pepper, text)


@given(PEPPERS, RANDOMNESS, RANDOMNESS)
def test_different_randomness_makes_different_keys(pepper: bytes, one: bytes, other: bytes) -> None:
    a, b = keys.mint(pepper, one), keys.mint(pepper, other)
    assert (a.secret == b.secret) == (one == other)
    assert (keys.stored_hash(pepper, a.secret.encode()) == keys.stored_hash(pepper, b.secret.encode())) == (one == other)
