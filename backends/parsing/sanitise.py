"""Text of a backend made fit for a client: no address, path, secret or traceback, and bounded.

Backends put all of these into error messages (Triton's BLS whole Python tracebacks, proxies their upstream's URL). The
raw text belongs into an error's `detail`, which only the log sees.
"""

from __future__ import annotations

import re

from backends.parsing.utf8 import scrub

#: Longest public message in UTF-8 bytes.
MAX_MESSAGE_BYTES = 1024
#: How much of a text is looked at: bounds the time of the patterns below.
_LOOKED_AT = 8192

_SECRET = re.compile(r"(?i)\bbearer\s+\S+|\b(?:sk|pk|hf|gsk|xai|key|nvapi)[-_][\w-]{8,}")
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,15}://[^\s\"'<>)\]]+")
_ADDRESS = re.compile(
    r"\[(?=[^\]:]*:)[0-9a-fA-F:]{2,45}\](?::\d{1,5})?"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b"
    r"|\b(?:[A-Za-z0-9_-]{1,63}\.){0,8}[A-Za-z0-9_-]{1,63}:\d{2,5}\b"
    r"|\b(?:[A-Za-z0-9_-]{1,63}\.){1,8}(?:local|internal|lan|svc|cluster|corp|intra|home)\b"
)
_PATH = re.compile(r"(?<![\w.])(?:~|\.{1,2})?(?:/[\w.@+~-]+){2,}/?|\b[A-Za-z]:\\[^\s\"'<>|]+|\\\\[\w.-]+\\[^\s\"'<>|]+")
_FRAME = re.compile(r'\bFile "[^"]*", line \d+(?:, in \S+)?')
_TRACEBACK = "Traceback (most recent call last)"


def public(text: str) -> str:
    """One line for a client, at most 1 KiB; "" when nothing fit to be shown is left."""
    text = scrub(text[:_LOOKED_AT])
    if _TRACEBACK in text:
        before, _, trace = text.partition(_TRACEBACK)
        lines = trace.strip().splitlines()
        text = before + " " + (lines[-1] if len(lines) > 1 else "")
    for pattern, instead in (
        (_FRAME, ""),
        (_SECRET, "[secret]"),
        (_URL, "[address]"),
        (_PATH, "[path]"),
        (_ADDRESS, "[address]"),
    ):
        text = pattern.sub(instead, text)
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if len(text.encode()) > MAX_MESSAGE_BYTES:
        text = text.encode()[: MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "..."
    return text
