"""The API on a port of this machine, for clients in other processes and languages."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from dagster_claude_batch.simulator import api
from dagster_claude_batch.simulator.errors import ApiError, invalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedIOBase

    from dagster_claude_batch.simulator.simulator import Simulator

LOOPBACK = "127.0.0.1"
_OWN_NAMES = frozenset({LOOPBACK, "localhost"})

_PIECE = 1 << 16
_LONGEST_LINE = 1_024


class SimulatorServer(ThreadingHTTPServer):
    """Serves a :class:`Simulator` on loopback, and nowhere else; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, simulator: Simulator, *, port: int = 0) -> None:
        self.simulator = simulator
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def base_url(self) -> str:
        """What a client takes as its ``base_url``."""
        return f"http://{LOOPBACK}:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about clients that go away in the middle."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType] - as given


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SimulatorServer  # pyright: ignore[reportIncompatibleVariableOverride] - the only server

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base
        """Log nothing: the terminal belongs to whoever started the server."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The simulator's time, by which its batches are dated too."""
        now = self.server.simulator.now().timestamp()
        return super().date_time_string(now if timestamp is None else timestamp)

    def _serve(self) -> None:
        body = self._body()
        reply = self._reply(body)
        self._drain(body)
        self._send(reply)

    def _reply(self, body: Iterator[bytes]) -> api.Reply:
        host = self.headers.get("host", self.server.base_url[7:])
        if _name_of(host) not in _OWN_NAMES:
            return _not_here(host)
        path, _, query = self.path.partition("?")
        return api.handle(
            self.server.simulator,
            api.Request(
                method=self.command,
                origin=f"http://{host}",
                path=path,
                query=query,
                headers={name.lower(): value for name, value in self.headers.items()},
                body=body,
            ),
        )

    def _drain(self, body: Iterator[bytes]) -> None:
        """Read what nobody wanted: a client that is still sending does not look for a reply."""
        try:
            for _ in body:
                pass
        except ApiError:
            self.close_connection = True

    def _send(self, reply: api.Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if isinstance(reply.body, bytes):
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
        else:
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in reply.body:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return _chunked(self.rfile)
        length = self.headers.get("content-length", "0")
        return _sized(self.rfile, int(length) if length.isdigit() else 0)


def _name_of(host: str) -> str:
    return host.rpartition(":")[0] if ":" in host else host


def _not_here(host: str) -> api.Reply:
    """Refuse what a page elsewhere sends here under its own name, by DNS rebinding."""
    problem = f"Host {host[:100]!r}: this simulator serves its own machine only"
    error = ApiError("permission_error", problem)
    body = json.dumps(error.as_json(None)).encode()
    return api.Reply(error.status, body, {"content-type": "application/json"})


def _sized(file: BufferedIOBase, length: int) -> Iterator[bytes]:
    while length > 0:
        piece = file.read(min(length, _PIECE))
        if not piece:
            raise invalid("The request body ended before its content-length")
        length -= len(piece)
        yield piece


def _chunked(file: BufferedIOBase) -> Iterator[bytes]:
    while True:
        line = file.readline(_LONGEST_LINE)
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError:
            raise invalid("The request body is not in valid chunks") from None
        if size <= 0:
            break
        yield from _sized(file, size)
        file.readline(_LONGEST_LINE)
    while file.readline(_LONGEST_LINE).strip():
        pass
