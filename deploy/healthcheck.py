"""Whether the gateway of this container is ready: exit status 0 or 1. Standard library only, so that it costs little.

python -I healthcheck.py [URL]
"""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request

_URL = "http://127.0.0.1:8080/health/ready"
_TIMEOUT_S = 4.0


def main(arguments: list[str]) -> int:
    """Ask once. The certificate is not checked: it names the gateway's clients' address, and this is its own loopback."""
    url = arguments[0] if arguments else _URL
    tls = ssl._create_unverified_context() if url.startswith("https:") else None  # noqa: S323
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            ready = answer.status == 200
    except (OSError, urllib.error.URLError):
        ready = False
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
