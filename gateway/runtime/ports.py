"""The API's port: owned by the supervisor, listened on by every worker with a socket of its own.

SO_REUSEPORT lets the kernel spread connections over the workers' sockets (socket(7)). Any process of the same user
could join in, so the supervisor first binds without it, which fails while somebody else has the port.
"""

from __future__ import annotations

import socket


class PortTaken(OSError):
    """Somebody else has the port, or it may not be bound; the message says which."""


def own_port(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen: it owns host:port while it is open. Port 0 takes a free one.

    Raises:
        PortTaken: with a sentence for the user.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # With SO_REUSEADDR alone, old connections in TIME_WAIT do not count, but a listener or an owner does.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        owner = socket.socket(family, socket.SOCK_STREAM)
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PortTaken(f"cannot listen on {host}:{port}: {reason} (server.listen; is another gateway running?)") from error
    return owner


def worker_socket(owner: socket.socket) -> socket.socket:
    """A worker's own socket on the owned port; not yet listening, non-blocking."""
    sock = socket.socket(owner.family, socket.SOCK_STREAM)
    # SO_REUSEADDR is for what it leaves behind: its connections in TIME_WAIT then do not fail the next probe.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setblocking(False)
    sock.bind(owner.getsockname())
    return sock
