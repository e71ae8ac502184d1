"""What the admin API answers when it does not do what it was asked, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backends.core.errors import BadRequest, GatewayError
from gateway.auth.records import (
    InvalidKey,
    KeyRetired,
    OwnerExists,
    OwnerInUse,
    PriceDeclared,
    PriceExists,
    UnknownKey,
    UnknownOwner,
    UnknownPrice,
)


class NotFound(GatewayError):
    """There is no such thing, or the key may not see it (404): the two look alike."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"

    def __init__(self, noun: str) -> None:
        super().__init__(f"There is no such {noun}, or you do not have access to it.")


class Conflict(GatewayError):
    """The state of things speaks against it (409)."""

    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class ReadOnly(Conflict):
    """The object stands in the configuration file (409)."""

    default_code = "read_only"

    def __init__(self, noun: str) -> None:
        super().__init__(f"This {noun} stands in the configuration file; change it there.")


@contextmanager
def told(noun: str) -> Iterator[None]:
    """What the stores raise, as an answer.

    Raises:
        BadRequest: naming the field. NotFound, Conflict: see above.
    """
    try:
        yield
    except InvalidKey as wrong:
        raise BadRequest(f"{wrong}.", param=str(wrong).partition(":")[0]) from wrong
    except (UnknownKey, UnknownOwner, UnknownPrice) as unknown:
        raise NotFound(noun) from unknown
    except PriceDeclared as declared:
        text = str(declared)
        raise Conflict(f"{text[:1].upper()}{text[1:]}.", code="read_only") from declared
    except (OwnerExists, OwnerInUse, KeyRetired, PriceExists) as conflict:
        text = str(conflict)
        raise Conflict(f"{text[:1].upper()}{text[1:]}.") from conflict
