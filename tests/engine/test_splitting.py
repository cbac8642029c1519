"""Bodies of a size: what the API refuses as too large is halved, what waits on disk is bounded."""

import json
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from kit import Project
from searching import open_files

from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.sending import Sender

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


class DiskUse(httpx2.BaseTransport):
    """A transport that weighs the nameless files that are open whenever a call passes it."""

    def __init__(self, transport: httpx2.BaseTransport) -> None:
        self.transport = transport
        self.before = self._sizes().keys()
        self.uses: list[list[int]] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        sizes = self._sizes()
        self.uses.append([sizes[inode] for inode in sizes.keys() - self.before])
        return self.transport.handle_request(request)

    def _sizes(self) -> dict[int, int]:
        nameless = (each for each in open_files(Path(tempfile.gettempdir())) if each.st_nlink == 0)
        return {each.st_ino: each.st_size for each in nameless if stat.S_ISREG(each.st_mode)}


def test_bodies_wait_on_disk_in_waves_that_stay_under_their_limit(project: Make) -> None:
    limit = 7_000
    made = project(chunk_size=2)
    made.load([("tweets", f"t{n}", "x" * 1_000) for n in range(12)])
    engine = made.engine()
    materializations = engine.attach(["tweets"], MaterializationConfig())
    disk = DiskUse(made.wire.transport)
    made.wire.transport = disk

    Sender(engine, max_spooled_bytes=limit).send(engine.read(materializations))

    assert made.wire.posts() == 6
    assert max(map(len, disk.uses)) > 1
    assert max(map(sum, disk.uses)) <= limit


def test_one_body_larger_than_the_limit_goes_alone(project: Make) -> None:
    made = project(chunk_size=1)
    made.load([("tweets", f"t{n}", "x" * 1_000) for n in range(2)])
    engine = made.engine()
    materializations = engine.attach(["tweets"], MaterializationConfig())
    disk = DiskUse(made.wire.transport)
    made.wire.transport = disk

    Sender(engine, max_spooled_bytes=1).send(engine.read(materializations))

    assert made.wire.posts() == 2
    assert max(map(len, disk.uses)) == 1
