"""The transport between a run and the simulator, on which everything can go wrong."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from simulation.baton import Boundary, Crash
from simulation.boundaries import site_here
from simulation.faults import Fault

if TYPE_CHECKING:
    from simulation.world import World

_CALLS = (
    ("create", "POST", r"/v1/messages/batches"),
    ("list", "GET", r"/v1/messages/batches"),
    ("retrieve", "GET", r"/v1/messages/batches/[^/]+"),
    ("delete", "DELETE", r"/v1/messages/batches/[^/]+"),
    ("cancel", "POST", r"/v1/messages/batches/[^/]+/cancel"),
    ("results", "GET", r"/v1/messages/batches/[^/]+/results"),
    ("model", "GET", r"/v1/models/[^/]+"),
    ("count_tokens", "POST", r"/v1/messages/count_tokens"),
)


def call_of(request: httpx2.Request) -> str:
    for name, method, path in _CALLS:
        if request.method == method and re.fullmatch(path, request.url.path):
            return name
    raise LookupError(f"{request.method} {request.url.path}")


class Impatient(anthropic.Anthropic):
    """The SDK's client, whose pauses between two tries take no time."""

    def _sleep_for_retry(self, **_: Any) -> None:
        return


class Wire(httpx2.BaseTransport):
    """One process's way to the API."""

    def __init__(self, world: "World", run: str, pause: Callable[[Boundary], Any]) -> None:
        self._world = world
        self._run = run
        self._pause = pause

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        call, site = call_of(request), site_here()
        request.read()
        if call == "count_tokens":
            return self._arrive(request, call)  # nothing depends on it: see `NOT_THE_ENGINE`
        decision = self._pause(Boundary(site, "before", call))
        fault = decision if isinstance(decision, Fault) else None
        self._world.clock.tick(1.0)
        if fault is None:
            response = self._arrive(request, call)
        else:
            response = self._befall(request, call, fault)
        self._pause(Boundary(site, "after", call))
        return response

    def _befall(self, request: httpx2.Request, call: str, fault: Fault) -> httpx2.Response:
        response = None
        if fault.delay is not None:
            self._world.arrives_later(
                request, call, self._run, fault.delay, is_stray=fault.is_stray
            )
        elif fault.arrives:
            response = self._arrive(request, call, fault)
            if fault.twice:
                again = self._arrive(request, call, fault, is_again=True)
                response = response if call == "create" else again
        if fault.crash:
            raise Crash
        if fault.error is not None:
            raise fault.error(fault.kind, request=request)
        if fault.garbage is not None:
            json_type = {"content-type": "application/json"}
            return httpx2.Response(200, content=fault.garbage, headers=json_type)
        if fault.refusal is not None:
            self._world.note_refusal(request, fault.refusal.status)
            return fault.refusal.response()
        assert response is not None
        return response

    def _arrive(
        self,
        request: httpx2.Request,
        call: str,
        fault: Fault | None = None,
        *,
        is_again: bool = False,
    ) -> httpx2.Response:
        is_stray = fault is not None and fault.twice and call == "create" and is_again
        response = self._world.arrive(request, call, self._run, is_stray=is_stray)
        damage = fault.damage if fault is not None else None
        if call != "results" or response.status_code != 200:
            return response
        damaged = damage.apply(response.content) if damage is not None else None
        batch_id = request.url.path.split("/")[-2]
        self._world.books.note_download(self._run, batch_id, damaged)
        if damaged is None:
            return response
        return httpx2.Response(200, content=_stream(damaged.lines, damaged.breaks_off))


def _stream(lines: list[bytes], breaks_off: bool) -> Iterator[bytes]:  # noqa: FBT001  # private
    yield from lines
    if breaks_off:
        raise httpx2.RemoteProtocolError("peer closed connection without sending complete body")


def without_hidden(response: httpx2.Response, hidden: set[str]) -> httpx2.Response:
    """A page of the list without the batches that it does not show yet."""
    page = json.loads(response.content)
    page["data"] = [batch for batch in page["data"] if batch["id"] not in hidden]
    ids = [batch["id"] for batch in page["data"]]
    page["first_id"], page["last_id"] = (ids[0], ids[-1]) if ids else (None, None)
    return httpx2.Response(200, json=page)


class Clock:
    """Our time, which only goes on when somebody moves it."""

    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def tick(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
