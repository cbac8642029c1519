"""A chunk that the API refuses as too large is halved until it is not."""

import json
from collections.abc import Callable

import httpx2
import pytest
from kit import Project

Make = Callable[..., Project]
CREATE = "POST /v1/messages/batches"
PAGE = "<html><body>Request Entity Too Large</body></html>"


def _refuse_larger_than(project: Project, most: int, *, also: str | None = None) -> list[int]:
    """Let a gateway refuse bodies with more requests; the sizes it has let pass."""
    passed: list[int] = []

    def gateway(request: httpx2.Request) -> httpx2.Response:
        project.wire.faults.append((CREATE, gateway))
        body = request.read()
        requests = json.loads(body)["requests"]
        if len(requests) > most or (also is not None and also.encode() in body):
            return httpx2.Response(413, text=PAGE)
        passed.append(len(requests))
        return project.wire.transport.handle_request(request)

    project.wire.faults.append((CREATE, gateway))
    return passed


@pytest.mark.parametrize(("most", "sizes"), [(5, [5, 5]), (3, [2, 2, 3, 3]), (1, [1] * 10)])
def test_a_chunk_that_is_too_large_is_split(tweets: Project, most: int, sizes: list[int]) -> None:
    passed = _refuse_larger_than(tweets, most)

    sent = tweets.materialize()

    assert sorted(passed) == sizes
    assert tweets.chunk_states() == {"landed": len(sizes)}
    assert sent.rows == sorted(f"t{n}" for n in range(10))
    assert len(tweets.answers()) == 10
    assert tweets.answers("DISTINCT _attempts") == [1]
    assert len(tweets.claude.simulator.bill()) == 10


def test_one_request_that_is_too_large_fails_alone(tweets: Project) -> None:
    tweets.change("t3", "enormous")
    _refuse_larger_than(tweets, 10, also="enormous")

    tweets.materialize()

    assert len(tweets.answers()) == 9
    assert tweets.failures("id, _error_type, _retryable, _cost_usd, _batch_id") == [
        ("t3", "request_too_large", False, 0, None)
    ]
    assert tweets.materialize().rows == []
