"""What is wrong with the address of a remote server, as the configuration writes it. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit


def bad_url(url: str) -> tuple[str, str] | None:
    """Problem and mend of a base URL; the URL itself may hold a secret and is not repeated."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "it is not a valid address", "write http://host:port/path"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "it is not an http:// or https:// address", "write http://host:port/path"
    if parts.username is not None or parts.password is not None:
        return "it carries credentials", "remove them and write `credential: env:NAME`"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "it has a query or a fragment", "end it with the path, such as /v1"
    if port == 0 or not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
        return "it is not a valid address", "write http://host:port/path in ASCII"
    return None
