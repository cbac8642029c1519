"""What the engine's tests are written with: a project, a script for Claude, and a wire to cut."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import dagster as dg
import duckdb
import httpx2
import pytest
from dagster_duckdb import DuckDBResource
from pydantic import BaseModel

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.batch_asset import batch_asset, engine_for
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.report import PartitionReport, report_on
from dagster_claude_batch.simulator import Reply, Simulator, SimulatorTransport
from dagster_claude_batch.warehouse import Warehouse
from dagster_claude_batch.workbench import Waiting, asset_of

SINCE_DUCKDB_2 = pytest.mark.skipif(
    int(duckdb.__version__.split(".")[0]) < 2, reason="not before DuckDB 2.0"
)


class Sentiment(BaseModel):
    label: Literal["positive", "neutral", "negative"]
    score: float


@dataclass
class Script:
    """How Claude answers: ends of requests by a word of their prompt, one an attempt."""

    ends: dict[str, list[str | None]] = field(default_factory=dict)
    replies: dict[str, str | Reply] = field(default_factory=dict)
    elements: dict[str, list[Any]] = field(default_factory=dict)

    def answer(self, params: dict[str, Any]) -> Any:
        asked = rows_in(params)
        if asked:
            return self._answer_rows(params, asked)
        prompt = prompt_of(params)
        for word, reply in self.replies.items():
            if word in prompt.split():
                return reply
        if "output_config" in params:
            return {"label": "positive", "score": 0.5}
        return f"An answer to: {prompt}"

    def _answer_rows(self, params: dict[str, Any], asked: list[str]) -> Any:
        """An element for each row, or what the row's word says in place of it."""
        schema = params["output_config"]["format"]["schema"]["properties"]["rows"]["items"]
        elements: list[Any] = []
        for number, text in enumerate(asked, 1):
            own = {"label": "positive", "score": 0.5}
            if "response" in schema["properties"]:
                own = {"response": f"An answer to: {text}"}
            instead = [e for word, e in self.elements.items() if word in text.split()]
            elements += instead[0] if instead else [{"row": number, **own}]
        return {"rows": elements}

    def outcome(self, params: dict[str, Any], custom_id: str, seen: int) -> str | None:
        del custom_id
        for word, ends in self.ends.items():
            if word in _words(prompt_of(params)):
                return ends[min(seen, len(ends) - 1)]
        return None

    def ends_with(self, word: str, *ends: str | None) -> None:
        """Let the request whose prompt has the word end like this; the last end is repeated."""
        self.ends[word] = list(ends)

    def answers_with(self, word: str, *elements: Any) -> None:
        """What stands in the list of answers in place of the one to the row that has the word."""
        self.elements[word] = list(elements)

    def replies_with(self, word: str, reply: str | Reply) -> None:
        self.replies[word] = reply


def prompt_of(params: dict[str, Any]) -> str:
    content = params["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s<>]+", text)


def rows_in(params: dict[str, Any]) -> list[str]:
    """The rows of a request that asks several."""
    content = params["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1].get("text", "")
    return re.findall(r'<row number="\d+">(.*?)</row>', text, re.DOTALL)


class Wire(httpx2.BaseTransport):
    """The simulator's transport, on which calls can be lost on the way there or back.

    A fault meets the next call it names, once; ``…`` stands for an id in the middle of a path.
    """

    def __init__(self, transport: httpx2.BaseTransport) -> None:
        self.transport = transport
        self.calls: list[str] = []
        self.faults: list[tuple[str, Callable[[httpx2.Request], httpx2.Response]]] = []
        self.hidden: set[str] = set()
        """Ids of batches that `list` does not show yet."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        call = f"{request.method} {request.url.path}"
        self.calls.append(call)
        for fault in self.faults:
            head, _, tail = fault[0].partition("…")
            is_meant = "…" in fault[0] and call.startswith(head) and call.endswith(tail)
            if call == fault[0] or is_meant:
                self.faults.remove(fault)
                return fault[1](request)
        response = self.transport.handle_request(request)
        if call == "GET /v1/messages/batches" and self.hidden:
            page = json.loads(response.read())
            page["data"] = [each for each in page["data"] if each["id"] not in self.hidden]
            return httpx2.Response(response.status_code, json=page)
        return response

    def posts(self) -> int:
        return self.calls.count("POST /v1/messages/batches")

    def lose_answer(self, call: str) -> None:
        """The call arrives and has its effect, but its answer never comes."""

        def fault(request: httpx2.Request) -> httpx2.Response:
            self.transport.handle_request(request).read()
            raise httpx2.ReadTimeout("the answer was lost", request=request)

        self.faults.append((call, fault))

    def lose_call(self, call: str, error: type[httpx2.TransportError]) -> None:
        """The call never arrives."""

        def fault(request: httpx2.Request) -> httpx2.Response:
            raise error("the call was lost", request=request)

        self.faults.append((call, fault))

    def answer(self, call: str, status: int, body: dict[str, Any], **headers: str) -> None:
        """The call does not arrive; something on the way answers it."""
        self.faults.append((call, lambda _: httpx2.Response(status, json=body, headers=headers)))

    def break_answer(self, call: str, *, after: int, error: type[httpx2.TransportError]) -> None:
        """The connection breaks when this much of the answer has come."""

        def fault(request: httpx2.Request) -> httpx2.Response:
            response = self.transport.handle_request(request)
            return httpx2.Response(response.status_code, content=pieces(response.read(), request))

        def pieces(body: bytes, request: httpx2.Request) -> Iterator[bytes]:
            yield body[:after]
            raise error("the connection broke", request=request)

        self.faults.append((call, fault))

    def change_call(self, call: str, change: Callable[[bytes], bytes]) -> None:
        """The call arrives with another body."""

        def fault(request: httpx2.Request) -> httpx2.Response:
            headers = {k: v for k, v in request.headers.items() if k != "content-length"}
            changed = httpx2.Request(
                request.method, request.url, headers=headers, content=change(request.read())
            )
            return self.transport.handle_request(changed)

        self.faults.append((call, fault))

    def change_answer(self, call: str, change: Callable[[bytes], bytes]) -> None:
        """The answer arrives with another body."""

        def fault(request: httpx2.Request) -> httpx2.Response:
            response = self.transport.handle_request(request)
            return httpx2.Response(response.status_code, content=change(response.read()))

        self.faults.append((call, fault))


class WiredClaude(LocalClaudeBatchResource):
    """The local resource, with a script to answer by and a wire to cut."""

    @cached_property
    def script(self) -> Script:
        return Script()

    @cached_property
    def simulator(self) -> Simulator:
        script = self.script
        hour = timedelta(hours=1).total_seconds()
        return Simulator(
            self.path,
            answer=script.answer,
            outcome=script.outcome,
            processing_seconds=(2 * hour, 3 * hour),
            max_queued_requests=self.max_queued_requests,
        )

    @cached_property
    def wire(self) -> Wire:
        return Wire(SimulatorTransport(self.simulator))

    def _http_client(self) -> httpx2.Client:
        return httpx2.Client(transport=self.wire)


@dataclass(frozen=True)
class Sent:
    """Row keys by batch, in the order of sending."""

    batches: list[list[str]]

    @property
    def rows(self) -> list[str]:
        return sorted(key for batch in self.batches for key in batch)


DECLARED = {
    "source": "texts",
    "row_key": "id",
    "prompt": "Rate {{ id }} now: {{ text }}",
    "output": Sentiment,
    "partitions_def": dg.StaticPartitionsDefinition(["tweets", "reviews"]),
    "partition_expr": "corpus",
}


NEWER_COLUMNS = (
    (4, "materializations", ("awaits", "pilot")),
    (4, "chunks", ("is_packed",)),
    (5, "chunks", ("model", "most_usd", "cost_usd")),
    (5, "materializations", ("capped", "left_partitions", "left_rows")),
    (5, "requests_1", ("_web_searches",)),
    (6, "requests_1", ("_fingerprint",)),
    (6, "chunks", ("deleted_at",)),
)
"""Columns by the version of the ledger that has added them."""

NEWER_TABLES_SINCE = 6


def as_it_is(warehouse: Warehouse) -> Warehouse:
    """What is done to a run's warehouse where a test wants nothing of it."""
    return warehouse


class Keepers:
    """Connections that keep files open in this process, so that each connect is cheap."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._open = dict[Path, duckdb.DuckDBPyConnection]()

    def keep(self, path: Path) -> None:
        if self.is_wanted and path not in self._open:
            self._open[path] = duckdb.connect(str(path), config=CONFIG)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


class Holder:
    """Another process that has the database open."""

    def __init__(self, path: Path) -> None:
        script = (
            "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('held', flush=True); "
            "sys.stdin.readline()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def let_go(self) -> None:
        self.process.communicate("let go\n")


CONFIG = {"custom_user_agent": "dagster"}
KEEPERS = Keepers()


class Project:
    """A declared asset over a table ``texts(corpus, id, text)`` in a DuckDB file."""

    def __init__(
        self, directory: Path, *, claude: dict[str, Any] | None = None, **declared: Any
    ) -> None:
        self.directory = directory
        self.path = directory / "warehouse.duckdb"
        self.claude = WiredClaude(path=str(directory / "simulator"), **(claude or {}))
        self.duckdb = DuckDBResource(database=str(self.path))
        self.rewire = as_it_is
        self.declare(**declared)

    def declare(self, **declared: Any) -> None:
        """Declare the asset, or declare it anew."""
        self.declared = {**DECLARED, **declared}
        self.assets_def = build_claude_batch_asset(
            self.declared.pop("key", "sentiment"), **self.declared
        )
        found = batch_asset(self.assets_def)
        assert found is not None
        self.asset = found

    @property
    def script(self) -> Script:
        return self.claude.script

    @property
    def wire(self) -> Wire:
        return self.claude.wire

    # --- the warehouse ----------------------------------------------------------------------

    def sql(self, sql: str, **parameters: object) -> list[tuple[Any, ...]]:
        KEEPERS.keep(self.path)
        with closing(duckdb.connect(str(self.path), config=CONFIG)) as connection:
            return connection.execute(sql, parameters).fetchall()

    def load(self, texts: Iterable[tuple[str, str, str | None]]) -> None:
        """Load the source anew: corpus, id, text."""
        self.sql("CREATE OR REPLACE TABLE texts (corpus VARCHAR, id VARCHAR, text VARCHAR)")
        for corpus, identity, text in texts:
            self.sql("INSERT INTO texts VALUES ($c, $i, $t)", c=corpus, i=identity, t=text)

    def change(self, identity: str, text: str | None) -> None:
        self.sql("UPDATE texts SET text = $text WHERE id = $id", text=text, id=identity)

    def remove(self, identity: str) -> None:
        self.sql("DELETE FROM texts WHERE id = $id", id=identity)

    def answers(self, columns: str = "id") -> list[Any]:
        return _plain(self.sql(f"SELECT {columns} FROM main.sentiment ORDER BY ALL"))

    def failures(self, columns: str = "id, _error_type") -> list[Any]:
        return _plain(self.sql(f"SELECT {columns} FROM main.sentiment_failures ORDER BY ALL"))

    def chunk_states(self) -> Counter[str]:
        return Counter(dict(self.sql("SELECT state, count(*) FROM claude_batch.chunks GROUP BY 1")))

    def take_ledger_back_to(self, version: int) -> None:
        """Make a ledger of an earlier version of it, from which its newer columns are missing."""
        self.sql("DROP VIEW IF EXISTS claude_batch.spending")
        if version < NEWER_TABLES_SINCE:
            self.sql("DROP TABLE claude_batch.pruned")
        for since, table, columns in NEWER_COLUMNS:
            for column in columns if since > version else ():
                self.sql(f"ALTER TABLE claude_batch.{table} DROP COLUMN {column}")
        self.sql(f"UPDATE claude_batch.ledger SET version = {version}")

    # --- runs -------------------------------------------------------------------------------

    def engine(
        self,
        *,
        run_id: str | None = None,
        retry_of: str | None = None,
        collects_for: str | None = None,
    ) -> Engine:
        """A run's engine, whose pauses pass at once."""
        engine = engine_for(
            self.asset,
            database=self.duckdb,
            claude=self.claude,
            run_id=run_id or str(uuid4()),
            retry_of=retry_of,
            collects_for=collects_for,
            log=dg.get_dagster_logger(),
        )
        engine.sleep = lambda seconds: self.claude.simulator.advance(timedelta(seconds=seconds))
        engine.warehouse = self.rewire(engine.warehouse)
        return engine

    def start(
        self,
        *partitions: str | None,
        run_id: str | None = None,
        collects_for: str | None = None,
        **config: Any,
    ) -> "RunOfTest":
        """Let a run do what it can do now."""
        run = RunOfTest(self, self.engine(run_id=run_id, collects_for=collects_for))
        run.asked = partitions or ("tweets",), MaterializationConfig(**config)
        run.materializations = run.engine.attach(*run.asked)
        run.advance()
        return run

    def materialize(self, *partitions: str | None, **config: Any) -> Sent:
        """Run until nothing is left to wait for; what was sent meanwhile."""
        before = len(self.claude.simulator.batches())
        run = self.start(*partitions, **config)
        for _ in range(20):
            if run.waiting is None:
                return self.sent(since=before)
            self.end_batches()
            self._wait_until(_next_try(run.waiting))
            run.advance()
        raise AssertionError("it never came to an end")

    def _wait_until(self, moment: datetime | None) -> None:
        if moment is not None and moment > self.claude.now():
            self.claude.simulator.advance(moment - self.claude.now())

    def end_batches(self) -> None:
        self.claude.simulator.end_batches()

    def send_as_a_stranger(self, requests: int) -> None:
        """Create a batch in the same workspace that is nobody's here."""
        params: Any = {
            "model": "claude-haiku-5-5",
            "max_tokens": 10,
            "messages": [{"role": "user", "content": "Rate theirs please"}],
        }
        self.claude.create(
            [{"custom_id": f"somebody-{n}", "params": params} for n in range(requests)]
        )

    def sent(self, *, since: int = 0) -> Sent:
        batches = self.claude.simulator.batches()[since:]
        return Sent([self._keys_in(batch.id) for batch in batches])

    def _keys_in(self, batch_id: str) -> list[str]:
        """The second word of each prompt is the row's id."""
        requests = self.claude.simulator.requests(batch_id)
        return [key for _, params in requests for key in _keys_of(params)]


def project_of_location(directory: Path, name: str) -> Project:
    """One of several projects in a code location: a database of its own, and one workspace."""
    (directory / name).mkdir(exist_ok=True)
    made = Project(directory / name, key=name, duckdb_resource=f"duckdb_{name}")
    made.claude = WiredClaude(path=str(directory / "simulator"))
    return made


@dataclass
class RunOfTest:
    """One run, driven step by step."""

    project: Project
    engine: Engine
    materializations: Sequence[Materialization] = ()
    waiting: Waiting | None = None
    asked: tuple[Sequence[str | None], MaterializationConfig] | None = None

    def advance(self) -> Waiting | None:
        """Advance, as `waiting.Run` does."""
        self.waiting = self.engine.advance(self.materializations)
        while self.waiting is None and self.asked is not None:
            more = self.engine.catch_up(*self.asked)
            if not more:
                break
            self.materializations = [*self.materializations, *more]
            self.waiting = self.engine.advance(self.materializations)
        return self.waiting

    def report(self, partition: str | None = "tweets") -> PartitionReport:
        """How a partition stands, as the run would say at its end."""
        declaration = self.project.asset.declaration
        return self.engine.warehouse.transact(
            lambda connection: report_on(
                connection,
                declaration,
                asset_of(connection, declaration.asset),
                self.materializations,
                partition,
            )
        )


def _keys_of(params: dict[str, Any]) -> list[str]:
    """The second word of a prompt, or the first of a row that shares it."""
    return [row.split()[0] for row in rows_in(params)] or [prompt_of(params).split()[1]]


def _next_try(waiting: Waiting) -> datetime | None:
    """Where something is in the way only of sending, nobody waits for more than that."""
    return waiting.send_after if waiting.is_for_room else waiting.not_before


def _plain(found: list[tuple[Any, ...]]) -> list[Any]:
    """Rows of one column as a list of values."""
    return [row[0] if len(row) == 1 else row for row in found]
