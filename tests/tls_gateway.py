"""A whole gateway that serves its API over TLS."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request

from tests.gateway_process import GatewayProcess


class TlsGateway(GatewayProcess):
    """A gateway that is asked over TLS."""

    trust: ssl.SSLContext

    @property
    def url(self) -> str:
        """`https://localhost:PORT`."""
        return f"https://localhost:{self.port}"

    def get(self, path: str, key: str | None = None) -> tuple[int, bytes]:
        """A GET: status and body."""
        request = urllib.request.Request(self.url + path, headers={"authorization": f"Bearer {key}"} if key else {})
        try:
            with urllib.request.urlopen(request, timeout=5, context=self.trust) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
