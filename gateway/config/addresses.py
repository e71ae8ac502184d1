"""What is wrong with the address of a remote server, as the configuration writes it. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

#: A host name (underscores stand in those of containers), an IPv4 address, or what stood in brackets.
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?|[0-9a-f:.]+(%[a-z0-9_.-]+)?")
#: Paths that dialects add themselves: whoever writes one has copied the whole address of a request.
_REQUEST = re.compile(r"/(chat/completions|completions?|embeddings|messages|api/chat|api/generate|generate(_stream)?)/*$")


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
    if not _HOST.fullmatch(parts.hostname):
        return "its host is no name and no address", "write http://host:port/path; nothing in it is replaced"
    if found := _REQUEST.search(parts.path):
        return "it ends with the path of one request", f"leave {found[0].rstrip('/')} away: the dialect adds it"
    if port == 0 or not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
        return "it is not a valid address", "write http://host:port/path in ASCII"
    return None


def bad_redis_url(url: str) -> tuple[str, str] | None:
    """Problem and mend of a Redis URL; the URL itself may hold a password and is not repeated. redis-py would take database 0
    for one that it cannot read.
    """
    mend = "write redis://host:6379/0, rediss://… or unix:///path"
    try:
        parts = urlsplit(url)
        sound = bool(parts.path.strip("/") if parts.scheme == "unix" else parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.scheme not in ("redis", "rediss", "unix"):
        return "it is not a Redis URL", mend
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not (database.isascii() and database.isdigit()):
        return "the database is no number", mend
    return None
