"""One small world: a DuckDB file, a simulated API with a clock of its own, and a source table."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

import anthropic
import dagster as dg
import duckdb
import httpx2
from pydantic import BaseModel

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset
from dagster_claude_batch.advance import Engine
from dagster_claude_batch.batch_asset import BatchAsset, batch_asset, engine_for
from dagster_claude_batch.simulator import Simulator, SimulatorTransport
from simulation.baton import Boundary
from simulation.books import Books, requests_in, row_of
from simulation.circumstances import Circumstances
from simulation.database import CONFIG, Database
from simulation.wire import Clock, Impatient, Wire, without_hidden

PARTITIONS: Final = ("tweets", "reviews", "mails")
TIMEOUT_SECONDS: Final = 120.0
"""A call that is lost on the way arrives within this time of its intent, or never."""

HIDDEN_AT_MOST: Final = timedelta(minutes=4, seconds=30)
"""So late a new batch may show up in `list`; the engine allows five minutes."""

SKEW_AT_MOST: Final = timedelta(minutes=4)
"""So far our clock and the API's disagree; the engine allows five minutes."""

_WRONG_AT_MOST: Final = timedelta(minutes=4, seconds=30)
"""So wrong the clock of a run's machine is at the most; the engine allows five minutes."""

_START: Final = datetime(2026, 11, 1, tzinfo=UTC)
_HOUR: Final = 3_600.0
_BAD_ENDS: Final = (
    "errored:api_error",
    "errored:overloaded_error",
    "errored:invalid_request_error",
    "expired",
    "expired",
    "canceled",
    "refusal",
    "max_tokens",
    "max_tokens",
    "invalid_output",
    "invalid_output",
    "missing",
    "unknown",
    "halted",
)


class Sentiment(BaseModel):
    label: Literal["positive", "neutral", "negative"]
    score: float


class Claude(LocalClaudeBatchResource):
    """The resource of one process: the shared simulator, behind a wire of its own."""

    _world: "World"
    _run: str
    _pause: Callable[[Boundary], Any]

    @cached_property
    def client(self) -> anthropic.Anthropic:
        return Impatient(
            api_key="simulated",
            timeout=self.timeout_seconds,
            http_client=httpx2.Client(transport=Wire(self._world, self._run, self._pause)),
        )

    @cached_property
    def simulator(self) -> Simulator:
        return self._world.simulator

    def now(self) -> datetime:
        return self._world.clock.now() + self._world.skew_of(self._run)


@cache
def declared(chunk_size: int, max_wait_hours: float | None, pilot: int | None) -> BatchAsset:
    """The asset, declared once for all worlds."""
    found = batch_asset(
        build_claude_batch_asset(
            "sentiment",
            source="texts",
            row_key="id",
            prompt="Rate {{ id }} now: {{ text }}",
            output=Sentiment,
            partitions_def=dg.StaticPartitionsDefinition(list(PARTITIONS)),
            partition_expr="corpus",
            chunk_size=chunk_size,
            max_attempts=3,
            max_wait_hours=max_wait_hours,
            max_failure_rate=1.0,
            pilot=pilot,
        )
    )
    assert found is not None
    return found


@dataclass
class _Letter:
    """A call that is still on its way."""

    due: datetime
    request: httpx2.Request
    call: str
    run: str
    is_stray: bool


@dataclass
class World:
    """Everything outside the engine. ``seed`` also decides how each request ends."""

    directory: Path
    seed: int
    circumstances: Circumstances
    clock: Clock = field(default_factory=lambda: Clock(_START))
    refused_alone: set[tuple[str, str]] = field(default_factory=set)
    hidden: dict[str, datetime] = field(default_factory=dict)
    letters: list[_Letter] = field(default_factory=list)
    left: list[tuple[str, str, str | None]] = field(default_factory=list)
    say: Callable[[str], None] = lambda _: None
    at_create: Callable[[str, bytes], None] = lambda _run, _body: None
    is_calm: bool = False
    additions: int = 0
    edits: int = 0
    added: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = Random(f"world {self.seed}")
        self.path = self.directory / "warehouse.duckdb"
        self.simulator = Simulator(
            self.directory / "simulator",
            answer=_answer,
            outcome=self._outcome,
            processing_seconds=(0.2 * _HOUR, 3 * _HOUR),
            now=lambda: self.clock.now() + self.circumstances.skew,
        )
        self._transport = SimulatorTransport(self.simulator)
        self.books = Books(self.simulator)
        self.open()

    def open(self) -> None:
        """Keep the file open in this process, so that each connect is cheap."""
        self.keeper = duckdb.connect(str(self.path), config=CONFIG)
        self.keeper.execute("SET GLOBAL threads = 1")

    def close(self) -> None:
        self.keeper.close()

    def sql(self, sql: str, **parameters: object) -> list[tuple[Any, ...]]:
        return self.keeper.execute(sql, parameters).fetchall()

    def has(self, table: str) -> bool:
        schema, _, name = table.rpartition(".")
        return bool(
            self.sql(
                "SELECT 1 FROM duckdb_tables() WHERE schema_name = $schema AND table_name = $name",
                schema=schema or "main",
                name=name,
            )
        )

    @property
    def clocks_apart(self) -> timedelta:
        """How much the clocks of two machines may differ."""
        if not self.circumstances.clocks_differ or self.circumstances.skew:
            return timedelta()
        return 2 * _WRONG_AT_MOST

    def skew_of(self, run_id: str) -> timedelta:
        """How wrong the clock is of the machine on which a run is at work."""
        if not self.clocks_apart:
            return timedelta()
        most = _WRONG_AT_MOST / timedelta(minutes=1)
        return timedelta(minutes=Random(f"clock {self.seed} {run_id}").uniform(-most, most))

    def engine(
        self, run_id: str, pause: Callable[[Boundary], Any], *, retry_of: str | None = None
    ) -> Engine:
        """The engine of a new process."""
        claude = Claude(
            path=str(self.directory / "simulator"),
            max_in_flight_requests=self.circumstances.window,
            timeout_seconds=TIMEOUT_SECONDS,
            poll_interval_seconds=60,
        )
        claude._world, claude._run, claude._pause = self, run_id, pause  # noqa: SLF001  # private to pydantic, not to us
        engine = engine_for(
            declared(
                self.circumstances.chunk_size,
                self.circumstances.max_wait_hours,
                self.circumstances.pilot,
            ),
            database=Database(self.path, pause),
            claude=claude,
            run_id=run_id,
            retry_of=retry_of,
            log=_LOG,
        )

        def sleep(seconds: float) -> None:
            pause(Boundary("sleep", "sleep", "sleep"))
            self.clock.tick(min(seconds, 1.0))

        engine.warehouse = replace(engine.warehouse, sleep=sleep)
        if hasattr(engine, "sleep"):
            engine.sleep = sleep
        engine.downloads_at_once = 0  # a run goes on in one thread: its own
        return engine

    # --- the source -------------------------------------------------------------------------

    def load(self) -> None:
        self.sql("CREATE TABLE texts (corpus VARCHAR, id VARCHAR, text VARCHAR)")
        for _ in range(self.circumstances.rows):
            self.add_row()

    def add_row(self) -> str:
        """A new row, or one that has been there before."""
        here = {key for (key,) in self.sql("SELECT id FROM texts")}
        free = [n for n in range(self.circumstances.rows + 4) if f"r{n}" not in here]
        if not free:
            return self.change_row()
        number = self.random.choice(free)
        corpus, text = PARTITIONS[number % len(PARTITIONS)], self._text()
        self._insert(corpus, f"r{number}", text)
        return f"add r{number} to {corpus}: {text}"

    def _insert(self, corpus: str, key: str, text: str | None) -> None:
        self.sql("INSERT INTO texts VALUES ($c, $i, $t)", c=corpus, i=key, t=text)
        self.additions += 1
        self.edits += 1
        self.added[key] = self.additions

    def change_row(self) -> str:
        key, text = self._any_row(), self._text()
        self.edits += 1
        self.sql("UPDATE texts SET text = $text WHERE id = $key", key=key, text=text)
        return f"change {key}: {text}"

    def remove_row(self) -> str:
        key = self._any_row()
        self.edits += 1
        self.sql("DELETE FROM texts WHERE id = $key", key=key)
        return f"remove {key}"

    def truncate(self) -> str:
        """All rows leave, to be loaded again."""
        self.edits += 1
        gone = sorted(self.sql("DELETE FROM texts RETURNING corpus, id, text"))
        self.left += gone
        return f"truncate: {len(gone)} rows"

    def load_again(self) -> str:
        """The rows that have left come back as they were."""
        for row in self.left:
            self._insert(*row)
        loaded = len(self.left)
        self.left.clear()
        return f"load again: {loaded} rows"

    def _any_row(self) -> str:
        rows = self.sql("SELECT id FROM texts ORDER BY id")
        return str(self.random.choice(rows)[0]) if rows else "nobody"

    def _text(self) -> str | None:
        """Few different texts, so that a row often says again what it has said before."""
        return None if self.random.random() < 0.03 else f"version {self.random.randint(1, 3)}"

    # --- the API ----------------------------------------------------------------------------

    def arrive(
        self, request: httpx2.Request, call: str, run: str = "", *, is_stray: bool = False
    ) -> httpx2.Response:
        """Let a call have its effect; a stray one should not have any, by the assumptions."""
        if call == "create" and not is_stray:
            self.at_create(run, request.content)
        answer = self._transport.handle_request(request)
        response = httpx2.Response(
            answer.status_code, headers=answer.headers, content=answer.read()
        )
        if call == "create" and response.status_code == 200:
            self._note_created(response.json()["id"], request.content)
            if is_stray:
                self.books.strays.add(response.json()["id"])
        if call == "list" and self.hidden:
            return without_hidden(response, self._hidden_now())
        return response

    def _note_created(self, batch_id: str, body: bytes) -> None:
        self.books.created(batch_id, requests_in(body))
        rows = " ".join(request.key for request in self.books.batches[batch_id])
        self.say(f"    {self.books.name(batch_id)} is created: {rows}")
        if self.circumstances.hides and not self.is_calm and self.random.random() < 0.5:
            hidden = self.random.uniform(0, HIDDEN_AT_MOST.total_seconds())
            self.hidden[batch_id] = self.clock.now() + timedelta(seconds=hidden)

    def note_refusal(self, request: httpx2.Request, status: int) -> None:
        """Remember rows whose request was too large all by itself."""
        if status == 413:
            requests = requests_in(request.content)
            if len(requests) == 1:
                self.refused_alone.add(row_of(requests[0][1]))

    def _hidden_now(self) -> set[str]:
        now = self.clock.now()
        return {batch_id for batch_id, until in self.hidden.items() if now < until}

    def arrives_later(
        self, request: httpx2.Request, call: str, run: str, seconds: float, *, is_stray: bool
    ) -> None:
        due = self.clock.now() + timedelta(seconds=seconds)
        self.letters.append(_Letter(due, request, call, run, is_stray))

    def deliver(self) -> None:
        """Let the calls arrive whose time has come."""
        due = sorted(
            (letter for letter in self.letters if letter.due <= self.clock.now()),
            key=lambda letter: letter.due,
        )
        for letter in due:
            self.letters.remove(letter)
            self.say(f"    the delayed {letter.call} of {letter.run} arrives")
            self.arrive(letter.request, letter.call, letter.run, is_stray=letter.is_stray)

    def move_clock(self, seconds: float) -> None:
        """Let time pass, with all that is due meanwhile in its order."""
        until = self.clock.now() + timedelta(seconds=seconds)
        while self.letters and (due := min(each.due for each in self.letters)) <= until:
            self._pass_to(due)
            self.deliver()
        while (left := (until - self.clock.now()).total_seconds()) > 0:
            self._pass_to(self.clock.now() + timedelta(seconds=min(left, 25 * _HOUR)))

    def _pass_to(self, moment: datetime) -> None:
        self.clock.tick(max(0.0, (moment - self.clock.now()).total_seconds()))
        self.books.learn()

    def _outcome(self, params: dict[str, Any], custom_id: str, seen: int) -> str | None:
        """How a request ends depends on the seed and its prompt, and on how often it was asked."""
        del custom_id
        prompt = params["messages"][-1]["content"]
        random = Random(f"{self.seed} {prompt} {seen}")
        if random.random() >= self.circumstances.bad_share:
            return None
        end = random.choice(_BAD_ENDS)
        return None if end == "halted" and self.is_calm else end


def _answer(params: dict[str, Any]) -> dict[str, Any]:
    prompt = str(params["messages"][-1]["content"])
    return {"label": "positive", "score": len(prompt) / 100}


_LOG = logging.getLogger("simulation.engine")
_LOG.propagate = False
_LOG.disabled = True
