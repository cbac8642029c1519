"""The HTTP API: one request → one reply, for the transport and the server alike."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from uuid import uuid4

from dagster_claude_batch.simulator import models
from dagster_claude_batch.simulator.body import MAX_BYTES
from dagster_claude_batch.simulator.errors import ApiError, SimulatorSetupError, invalid
from dagster_claude_batch.simulator.json_values import Params, compact, identifier, is_object
from dagster_claude_batch.simulator.params import check_prompt
from dagster_claude_batch.simulator.tokens import input_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from dagster_claude_batch.simulator.batch import Batch
    from dagster_claude_batch.simulator.simulator import Simulator

_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request; ``origin`` is the ``http://host:port`` it came to, header names are lower case."""

    method: str
    origin: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply; a body that is an iterator is sent as it comes, without its length."""

    status: int
    body: bytes | Iterator[bytes]
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class _Call:
    """What an endpoint is told."""

    simulator: Simulator
    request: Request
    query: dict[str, str]


def handle(simulator: Simulator, request: Request) -> Reply:
    """Answer one request; whatever is wrong with it is in the reply."""
    request_id = identifier("req", uuid4().hex)
    try:
        reply = _dispatch(simulator, request)
    except ApiError as error:
        reply = _json(error.as_json(request_id), status=error.status)
    except SimulatorSetupError as error:
        reply = _json(invalid(str(error)).as_json(request_id), status=400)
    reply.headers["request-id"] = request_id
    return reply


def _dispatch(simulator: Simulator, request: Request) -> Reply:
    _check_headers(request.headers)
    for method, pattern, parameters, endpoint in _ENDPOINTS:
        match = pattern.fullmatch(request.path)
        if match and method == request.method:
            query = _query(request.query, parameters)
            return endpoint(_Call(simulator, request, query), *match.groups())
    raise ApiError("not_found_error", f"Not Found: {request.method} {request.path}")


def _check_headers(headers: Mapping[str, str]) -> None:
    bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not bearer and not headers.get("x-api-key", "").strip():
        raise ApiError("authentication_error", "x-api-key header is required")
    if not headers.get("anthropic-version"):
        raise invalid("anthropic-version: header is required")


def _query(query: str, allowed: frozenset[str]) -> dict[str, str]:
    given = parse_qs(query, keep_blank_values=True)
    for name in given.keys() - allowed - {"beta"}:
        raise ApiError("not_found_error", f"Not Found: query parameter {name!r}")
    return {name: values[-1] for name, values in given.items()}


def _create(call: _Call) -> Reply:
    return _batch(call, call.simulator.create(call.request.body))


def _list(call: _Call) -> Reply:
    page = call.simulator.page(
        limit=_limit(call.query),
        after_id=call.query.get("after_id"),
        before_id=call.query.get("before_id"),
    )
    data = [batch.as_json(call.request.origin) for batch in page.batches]
    return _page(data, has_more=page.has_more)


def _retrieve(call: _Call, batch_id: str) -> Reply:
    return _batch(call, call.simulator.retrieve(batch_id))


def _cancel(call: _Call, batch_id: str) -> Reply:
    return _batch(call, call.simulator.cancel(batch_id))


def _delete(call: _Call, batch_id: str) -> Reply:
    call.simulator.delete(batch_id)
    return _json({"id": batch_id, "type": "message_batch_deleted"})


def _results(call: _Call, batch_id: str) -> Reply:
    lines = call.simulator.results(batch_id)
    return Reply(200, _in_pieces(lines), {"content-type": "application/x-jsonl"})


def _count_tokens(call: _Call) -> Reply:
    params = _read_object(call.request.body)
    check_prompt(params)
    return _json({"input_tokens": input_tokens(params)})


def _list_models(call: _Call) -> Reply:
    known = [models.as_json(model) for model in models.all_models()]
    limit = _limit(call.query)
    start = _after([str(model["id"]) for model in known], call.query.get("after_id"))
    return _page(known[start : start + limit], has_more=start + limit < len(known))


def _retrieve_model(_call: _Call, model_id: str) -> Reply:
    return _json(models.as_json(models.find_model(model_id)))


_PAGING = frozenset({"limit", "after_id", "before_id"})
_NONE = frozenset[str]()
_BATCHES = "/v1/messages/batches"
_ENDPOINTS: tuple[tuple[str, re.Pattern[str], frozenset[str], Callable[..., Reply]], ...] = (
    ("POST", re.compile(_BATCHES), _NONE, _create),
    ("GET", re.compile(_BATCHES), _PAGING, _list),
    ("GET", re.compile(rf"{_BATCHES}/([^/]+)"), _NONE, _retrieve),
    ("DELETE", re.compile(rf"{_BATCHES}/([^/]+)"), _NONE, _delete),
    ("POST", re.compile(rf"{_BATCHES}/([^/]+)/cancel"), _NONE, _cancel),
    ("GET", re.compile(rf"{_BATCHES}/([^/]+)/results"), _NONE, _results),
    ("POST", re.compile("/v1/messages/count_tokens"), _NONE, _count_tokens),
    ("GET", re.compile("/v1/models"), _PAGING, _list_models),
    ("GET", re.compile("/v1/models/([^/]+)"), _NONE, _retrieve_model),
)


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", "20")
    if not text.isascii() or not text.isdigit():
        raise invalid("limit: Input should be a valid integer")
    return int(text[:9])


def _after(ids: list[str], after_id: str | None) -> int:
    if after_id is None:
        return 0
    if after_id not in ids:
        raise invalid(f"after_id: {after_id} is not a known model")
    return ids.index(after_id) + 1


def _read_object(body: Iterable[bytes]) -> Params:
    content = b"".join(body)
    if len(content) > MAX_BYTES:
        raise ApiError("request_too_large", f"Request exceeds the maximum of {MAX_BYTES} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from None
    if not is_object(value):
        raise invalid("Input should be an object")
    return value


def _batch(call: _Call, batch: Batch) -> Reply:
    return _json(batch.as_json(call.request.origin))


def _page(data: list[dict[str, Any]], *, has_more: bool) -> Reply:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return _json({"data": data, "has_more": has_more, "first_id": first, "last_id": last})


def _json(value: object, *, status: int = 200) -> Reply:
    return Reply(status, compact(value).encode(), {"content-type": "application/json"})


def _in_pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, gathered: a piece for every line would cost more than the lines."""
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
