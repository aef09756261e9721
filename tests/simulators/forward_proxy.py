"""A forward proxy on loopback, as companies have: it tunnels (CONNECT), hands on plain requests, and remembers both."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 65536
_HEAD_LIMIT = 65536
_PATIENCE_S = 20.0


class ForwardProxy:
    """`seen` are the targets it was asked for, `CONNECT host:port` or `GET http://…`."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(_PATIENCE_S)
            head, rest = _head_of(client)
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            self.seen.append(f"{method} {target}")
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                with socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S) as server:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    _join(client, server)
            else:
                parts = urlsplit(target)
                path = parts._replace(scheme="", netloc="").geturl() or "/"
                own = head.replace(target.encode(), path.encode(), 1)
                with socket.create_connection((parts.hostname or "", parts.port or 80), _PATIENCE_S) as server:
                    server.sendall(own + rest)
                    _join(client, server)


def _head_of(client: socket.socket) -> tuple[bytes, bytes]:
    """The request's head with its empty line, and what came after it already."""
    data = b""
    while b"\r\n\r\n" not in data and len(data) < _HEAD_LIMIT:
        part = client.recv(_CHUNK)
        if not part:
            raise ConnectionResetError
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _join(one: socket.socket, other: socket.socket) -> None:
    """Bytes go both ways until one side ends."""
    back = threading.Thread(target=_pump, args=(other, one), daemon=True)
    back.start()
    _pump(one, other)
    back.join(_PATIENCE_S)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(_CHUNK):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
