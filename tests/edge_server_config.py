"""uvicorn with the edge's protocol class alone: no worker, no line to a supervisor."""

from __future__ import annotations

from typing import Any

from uvicorn import Config

from gateway.edge.cycle import App
from gateway.edge.limits import Limits
from gateway.edge.protocol import EdgeProtocol


def server_config(app: App, limits: Limits, **options: Any) -> Config:
    """As `gateway.runtime.worker` has it, with these limits; `options` are uvicorn's own."""
    return Config(
        app,
        http=type("Protocol", (EdgeProtocol,), {"limits": limits}),
        ws="none",
        interface="asgi3",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        **options,
    )
