"""The API inside the process: no socket, no key, the SDK none the wiser."""

from __future__ import annotations

from collections.abc import Iterable
from email.utils import format_datetime
from typing import TYPE_CHECKING

import httpx2

from dagster_claude_batch.simulator import api

if TYPE_CHECKING:
    from dagster_claude_batch.simulator.simulator import Simulator


class SimulatorTransport(httpx2.BaseTransport):
    """Serves the API from a :class:`Simulator`, under whatever host it is asked for.

    ::

        simulator = Simulator(path)
        client = anthropic.Anthropic(
            api_key="simulated",
            http_client=httpx2.Client(transport=SimulatorTransport(simulator)),
        )
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request. Bodies pass in both directions piece by piece."""
        if not isinstance(request.stream, Iterable):
            raise TypeError("SimulatorTransport serves synchronous clients only")
        reply = api.handle(
            self.simulator,
            api.Request(
                method=request.method,
                origin=f"{request.url.scheme}://{request.url.netloc.decode()}",
                path=request.url.path,
                query=request.url.query.decode(),
                headers=request.headers,
                body=request.stream,
            ),
        )
        date = format_datetime(self.simulator.now(), usegmt=True)
        headers = {**reply.headers, "date": date}
        return httpx2.Response(reply.status, headers=headers, content=reply.body)
