"""A database that is locked, fails in the middle, is full, or is not where it was."""

import itertools
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import httpx2
import pytest
from dagster_duckdb import DuckDBResource
from kit import CONFIG, KEEPERS, Holder, Project, RunOfTest, as_it_is

from dagster_claude_batch.database_file import head_of
from dagster_claude_batch.errors import (
    DatabaseFailedError,
    DatabaseLockedError,
    LedgerLostError,
)
from dagster_claude_batch.ledger import MaterializationConfig
from dagster_claude_batch.warehouse import Connection, Warehouse, read_arrow, rows

Make = Callable[..., Project]
CREATE = "POST /v1/messages/batches"
RESULTS = "GET /v1/messages/batches/…/results"
LONG_ENOUGH = timedelta(minutes=36)

pytestmark = pytest.mark.opens_anew


@pytest.fixture
def three(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(3)])
    return made


def _finish(project: Project) -> None:
    """Let a later run come to the end, and see that each row was paid for once, and answered."""
    project.rewire = as_it_is
    project.claude.simulator.advance(LONG_ENOUGH)
    project.end_batches()

    project.materialize()

    assert project.answers() == ["t0", "t1", "t2"]
    assert project.failures() == []
    assert len(project.claude.simulator.bill()) == 3
    assert project.sql("SELECT DISTINCT state FROM claude_batch.materializations") == [("done",)]
    assert project.chunk_states().keys() <= {"landed", "given_up"}
    assert project.chunk_states()["landed"] == 1
    assert project.materialize().rows == []


# --- locked ---------------------------------------------------------------------------------


@dataclass
class Time:
    """A clock that only sleeping moves."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)
    alarms: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        due = [alarm for alarm in self.alarms if alarm[0] <= self.now]
        for alarm in due:
            self.alarms.remove(alarm)
            alarm[1]()

    def in_place(self, warehouse: Warehouse) -> Warehouse:
        return replace(warehouse, sleep=self.sleep, clock=self.clock)


class Heard(logging.Handler):
    """What was logged, with the time at which it was."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        self.time = time
        self.said: list[tuple[float, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((self.time.now, record.levelno, record.getMessage()))


def _listening(time: Time, warehouse: Warehouse) -> tuple[Heard, Warehouse]:
    heard = Heard(time)
    log = logging.Logger("of the test")  # noqa: LOG001  # one that nobody else shares
    log.addHandler(heard)
    return heard, time.in_place(replace(warehouse, log=log))


def test_a_lock_is_waited_for_and_its_holder_named_ever_more_rarely(three: Project) -> None:
    time = Time()
    heard, warehouse = _listening(time, three.engine().warehouse)
    holder = Holder(three.path)

    with pytest.raises(DatabaseLockedError) as raised:
        warehouse.transact(lambda _: None)
    holder.let_go()

    assert f"PID {holder.process.pid})" in str(raised.value)
    assert str(three.path) in str(raised.value)
    assert "for 600 s" in str(raised.value)
    assert all(f"PID {holder.process.pid})" in text for _, _, text in heard.said)
    moments = [moment for moment, _, _ in heard.said]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert moments[0] < 5
    assert gaps == sorted(gaps)
    assert 3 <= len(moments) <= 8
    levels = [level for _, level, _ in heard.said]
    assert (levels[0], levels[-1]) == (logging.INFO, logging.WARNING)
    assert levels == sorted(levels)


def test_how_long_a_lock_is_waited_for_is_configurable(project: Make) -> None:
    made = project(claude={"lock_timeout_seconds": 7})
    made.load([])
    time = Time()
    made.rewire = time.in_place
    holder = Holder(made.path)

    with pytest.raises(DatabaseLockedError, match="for 7 s"):
        made.start()
    holder.let_go()

    assert sum(time.pauses) == pytest.approx(7)


def test_a_lock_that_is_let_go_of_in_time_costs_nothing_but_the_time(three: Project) -> None:
    time = Time()
    holder = Holder(three.path)
    time.alarms.append((300, holder.let_go))
    heard: list[Heard] = []

    def listen(warehouse: Warehouse) -> Warehouse:
        listening, listened = _listening(time, warehouse)
        heard.append(listening)
        return listened

    three.rewire = listen
    three.materialize()

    assert len(three.answers()) == 3
    assert 300 <= time.now < 303
    assert [text for _, _, text in heard[0].said if "free again" in text]


def test_a_lock_of_a_moment_is_not_worth_a_word(three: Project) -> None:
    time = Time()
    heard, warehouse = _listening(time, three.engine().warehouse)
    holder = Holder(three.path)
    time.alarms.append((0.3, holder.let_go))

    warehouse.transact(lambda _: None)

    assert heard.said == []


def test_two_that_wait_do_not_wait_in_step(three: Project) -> None:
    holder = Holder(three.path)
    times = [Time(), Time()]
    for time in times:
        waiting = replace(time.in_place(three.engine().warehouse), lock_timeout_seconds=60)
        with pytest.raises(DatabaseLockedError):
            waiting.transact(lambda _: None)
    holder.let_go()

    first, second = (time.pauses[:-1] for time in times)
    assert not set(first) & set(second)
    assert max(first + second) <= 2


def test_the_limit_is_for_a_transaction_however_often_it_is_tried(three: Project) -> None:
    """Each try meets a lock that is let go of after 100 s, and then loses against another run."""
    time = Time()
    until = [100.0]
    plain = three.engine().warehouse

    def open_later() -> AbstractContextManager[Connection]:
        if time.now < until[0]:
            raise duckdb.IOException("Could not set lock on file")
        return plain.open_connection()

    def lose(connection: Connection) -> None:
        del connection
        until[0] = time.now + 100
        raise duckdb.TransactionException("Conflict on update!")

    with pytest.raises(DatabaseLockedError):
        time.in_place(replace(plain, open_connection=open_later)).transact(lose)

    assert time.now == pytest.approx(600, abs=5)


def test_a_lock_after_the_post_leaves_a_chunk_that_is_found_again(three: Project) -> None:
    three.rewire = Time().in_place
    held: list[Holder] = []
    transport = three.wire.transport

    def take_the_lock(request: httpx2.Request) -> httpx2.Response:
        held.append(Holder(three.path))
        return transport.handle_request(request)

    three.wire.faults.append((CREATE, take_the_lock))
    with pytest.raises(DatabaseLockedError, match="never sent twice"):
        three.start()
    held[0].let_go()

    assert three.chunk_states() == {"sending": 1}
    _finish(three)
    assert three.wire.posts() == 1


def test_a_lock_during_the_download_loses_no_answer(three: Project) -> None:
    three.start()
    three.end_batches()
    three.rewire = Time().in_place
    held: list[Holder] = []
    transport = three.wire.transport

    def take_the_lock(request: httpx2.Request) -> httpx2.Response:
        held.append(Holder(three.path))
        return transport.handle_request(request)

    three.wire.faults.append((RESULTS, take_the_lock))
    with pytest.raises(DatabaseLockedError):
        three.start()
    held[0].let_go()

    assert three.chunk_states() == {"submitted": 1}
    _finish(three)
    assert three.wire.posts() == 1


# --- at any transaction ---------------------------------------------------------------------


class Fragile:
    """A DuckDB connection that something happens to; everything else is the real one's."""

    def __init__(self, connection: Connection, fault: "Fault") -> None:
        self._connection = connection
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        self._fault(self._connection)


Fault = Callable[[Connection], None]


def _lost_before(connection: Connection) -> None:
    connection.close()
    connection.commit()


def _lost_after(connection: Connection) -> None:
    """The commit arrives, and nobody learns of it."""
    connection.commit()
    connection.close()
    connection.execute("SELECT 1")


def _invalidated(connection: Connection) -> None:
    connection.rollback()
    raise duckdb.FatalException(
        "FATAL Error: Failed: database has been invalidated because of a previous fatal error.\n"
        "Stack Trace:\n0x7f"
    )


def _no_room(connection: Connection) -> None:
    with _full_disk():
        connection.commit()


@contextmanager
def _full_disk() -> Generator[None]:
    """Let every write to a file fail (Python ignores the signal that comes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _failing_at(fault: Fault, number: int, warehouse: Warehouse) -> Warehouse:
    """A warehouse whose n-th transaction meets the fault at its commit."""
    left = [number]

    @contextmanager
    def open_connection() -> Iterator[Any]:
        left[0] -= 1
        with warehouse.open_connection() as connection:
            yield Fragile(connection, fault) if left[0] == 0 else connection

    return replace(warehouse, open_connection=open_connection)


def _locked_from(number: int, warehouse: Warehouse) -> Warehouse:
    """A warehouse that another process holds from the n-th transaction on."""
    left = [number]

    def open_connection() -> AbstractContextManager[Connection]:
        left[0] -= 1
        if left[0] <= 0:
            raise duckdb.IOException("Could not set lock on file: Conflicting lock is held in x.")
        return warehouse.open_connection()

    return replace(Time().in_place(warehouse), open_connection=open_connection)


FAULTS: dict[str, Callable[[int, Warehouse], Warehouse]] = {
    "locked": _locked_from,
    "lost before": partial(_failing_at, _lost_before),
    "lost after": partial(_failing_at, _lost_after),
    "no room": partial(_failing_at, _no_room),
}


def _survives(directory: Path, failing: Callable[[Warehouse], Warehouse]) -> bool:
    """Materialize until the fault is met, and then again without it; False if it never was."""
    directory.mkdir()
    made = Project(directory)
    made.load([("tweets", f"t{n}", f"Tweet number {n}") for n in range(3)])
    made.rewire = failing
    try:
        made.materialize()
    except (DatabaseFailedError, DatabaseLockedError) as error:
        assert str(made.path) in str(error)  # noqa: PT017  # not all transactions can meet it
        _finish(made)
        return True
    return False


@pytest.mark.parametrize(
    "fault",
    [
        "locked",
        "lost after",
        pytest.param("no room", marks=pytest.mark.exhaustive),
        pytest.param("lost before", marks=pytest.mark.exhaustive),
    ],
)
def test_whichever_transaction_fails_nothing_is_lost_and_nothing_sent_twice(
    tmp_path: Path, fault: str
) -> None:
    KEEPERS.is_wanted = fault in {"locked", "lost after"}  # the others are about the file
    met = [
        number
        for number in range(1, 26)
        if _survives(tmp_path / str(number), partial(FAULTS[fault], number))
    ]

    assert len(met) >= len(WRITING)
    assert met[-1] < 25


WRITING = ("attach", "check the model", "intend", "record", "land", "end")


def test_bodies_that_cannot_be_sent_are_closed(three: Project) -> None:
    three.rewire = partial(_failing_at, _lost_before, 5)
    head_of(three.path)  # which keeps the database's file open, on purpose
    before = _open_files()

    with pytest.raises(DatabaseFailedError) as raised:
        three.start()

    assert raised.traceback  # while somebody looks at what has happened
    assert _open_files() == before


def _open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_a_disk_that_is_full_when_answers_land_loses_none(three: Project) -> None:
    three.start()
    three.end_batches()
    run = RunOfTest(three, three.engine())
    run.materializations = run.engine.attach(["tweets"], MaterializationConfig())
    transport = three.wire.transport

    def fill(request: httpx2.Request) -> httpx2.Response:
        response = transport.handle_request(request)
        run.engine.warehouse = _failing_at(_no_room, 1, run.engine.warehouse)
        return response

    three.wire.faults.append((RESULTS, fill))
    with pytest.raises(DatabaseFailedError, match=r"Could not write.*has room on its disk"):
        run.advance()

    assert three.chunk_states() == {"submitted": 1}
    assert three.answers() == []
    _finish(three)


def test_a_database_that_was_invalidated_is_opened_anew(three: Project) -> None:
    three.rewire = partial(_failing_at, _invalidated, 8)

    with pytest.raises(DatabaseFailedError, match="invalidated") as raised:
        three.start()

    assert "Stack Trace" not in str(raised.value)
    assert three.chunk_states() == {"sending": 1}
    _finish(three)


# --- what an error means --------------------------------------------------------------------

ENDLESS = "SELECT count(*) FROM range(1_000_000_000) AS a, range(1_000) AS b"


def test_a_query_that_is_interrupted_names_the_database(three: Project) -> None:
    def interrupted(connection: Connection) -> None:
        timer = threading.Timer(0.05, connection.interrupt)
        timer.start()
        connection.execute(ENDLESS)

    with pytest.raises(DatabaseFailedError, match=r"warehouse\.duckdb: INTERRUPT Error"):
        three.engine().warehouse.transact(interrupted)


def test_a_stream_that_is_interrupted_names_the_database(three: Project) -> None:
    def interrupted(connection: Connection) -> None:
        stream = read_arrow(connection, "SELECT md5(a::VARCHAR) FROM range(10_000_000) AS t(a)")
        next(stream)
        connection.interrupt()
        for _ in stream:
            pass

    with pytest.raises(DatabaseFailedError, match="INTERRUPT Error"):
        three.engine().warehouse.transact(interrupted)


def test_a_signal_ends_a_query_as_it_ends_anything_else(three: Project) -> None:
    """DuckDB puts an error of its own in place of what the handler raised."""

    class TerminatedError(BaseException):
        pass

    def terminated(connection: Connection) -> None:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
        connection.execute("CREATE TABLE t AS SELECT sha256(a::VARCHAR) FROM range(5_000_000) t(a)")
        connection.execute(ENDLESS)

    def handler(*_: object) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises((KeyboardInterrupt, TerminatedError)):
            three.engine().warehouse.transact(terminated)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nothing", "SELECT 'x'::INTEGER", "FROM gone"])
def test_what_is_wrong_with_some_sql_stays_what_it_is(three: Project, sql: str) -> None:
    with pytest.raises((duckdb.ProgrammingError, duckdb.DataError)):
        three.engine().warehouse.transact(lambda connection: connection.execute(sql))


def test_a_database_that_may_only_be_read_is_an_error_that_says_so(three: Project) -> None:
    three.duckdb = DuckDBResource(
        database=str(three.path), connection_config={"access_mode": "READ_ONLY"}
    )

    with pytest.raises(DatabaseFailedError, match="read-only mode"):
        three.start()


def test_a_database_open_elsewhere_in_the_process_otherwise_is_an_error(three: Project) -> None:
    with (
        closing(duckdb.connect(str(three.path))),
        pytest.raises(DatabaseFailedError, match="different configuration"),
    ):
        three.start()


def test_no_credential_of_an_address_is_shown() -> None:
    def refuse() -> AbstractContextManager[Connection]:
        raise duckdb.IOException("md:db?motherduck_token=SESAME&x=1 is not reachable")

    with pytest.raises(DatabaseFailedError) as raised:
        Warehouse(refuse).transact(lambda _: None)

    assert "SESAME" not in str(raised.value)


# --- not where it was -----------------------------------------------------------------------


def _gone(path: Path) -> None:
    del path


def _empty_file(path: Path) -> None:
    path.touch()


def _text(path: Path) -> None:
    path.write_text("This is no database.\n" * 1_000)


def _a_directory(path: Path) -> None:
    path.mkdir()


def _a_new_database(path: Path) -> None:
    with closing(duckdb.connect(str(path))) as connection:
        connection.execute(
            "CREATE TABLE texts AS SELECT 'tweets' AS corpus, 't1' AS id, 'x' AS text"
        )


REPLACEMENTS = [_gone, _empty_file, _text, _a_directory, _a_new_database]
Replace = Callable[[Path], None]


@dataclass
class Away:
    """A database file that was moved away, with something else in its place."""

    path: Path
    replace: Replace

    @property
    def aside(self) -> Path:
        return self.path.with_name("moved.duckdb")

    def __enter__(self) -> None:
        self.path.rename(self.aside)
        self.replace(self.path)

    def __exit__(self, *_: object) -> None:
        if self.path.is_dir():
            self.path.rmdir()
        self.aside.replace(self.path)


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_run_that_collects_makes_no_new_warehouse(three: Project, replace: Replace) -> None:
    three.start(run_id="submits")
    three.end_batches()

    with Away(three.path, replace), pytest.raises((LedgerLostError, DatabaseFailedError)) as raised:
        three.start(run_id="collects", collects_for="submits")
    assert str(three.path) in str(raised.value)
    assert three.wire.posts() == 1

    _finish(three)
    assert three.wire.posts() == 1


def test_where_the_file_was_nothing_is_created(three: Project) -> None:
    three.start(run_id="submits")

    with Away(three.path, _gone):
        with pytest.raises(LedgerLostError, match=r"Put the database back"):
            three.start(run_id="collects", collects_for="submits")
        assert not three.path.exists()


def test_a_log_that_was_left_where_the_file_was_is_kept(three: Project) -> None:
    """DuckDB would throw it away, and with it what was committed last."""
    three.start(run_id="submits")
    script = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]);"
        "c.execute('CREATE TABLE last AS SELECT 1'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, str(three.path)], check=True)
    assert three.path.with_name("warehouse.duckdb.wal").stat().st_size > 0

    with Away(three.path, _gone), pytest.raises(LedgerLostError):
        three.start(run_id="collects", collects_for="submits")

    assert three.sql("SELECT * FROM last") == [(1,)]


def test_a_directory_that_was_removed_is_an_error(tmp_path: Path) -> None:
    made = Project(tmp_path)
    made.path = tmp_path / "there" / "warehouse.duckdb"
    made.path.parent.mkdir()
    made.duckdb = DuckDBResource(database=str(made.path))
    made.load([("tweets", f"t{n}", "x") for n in range(3)])
    made.start(run_id="submits")
    made.path.parent.rename(tmp_path / "elsewhere")

    with pytest.raises(LedgerLostError):
        made.start(run_id="collects", collects_for="submits")
    with pytest.raises(DatabaseFailedError, match="No such file or directory"):
        made.start()

    (tmp_path / "elsewhere").rename(made.path.parent)
    _finish(made)


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_run_that_advances_makes_no_new_warehouse(three: Project, replace: Replace) -> None:
    run = three.start()
    three.end_batches()

    with Away(three.path, replace), pytest.raises((LedgerLostError, DatabaseFailedError)) as raised:
        run.advance()
    assert str(three.path) in str(raised.value)

    _finish(three)


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_database_that_leaves_during_the_post_is_looked_for(
    three: Project, replace: Replace
) -> None:
    transport = three.wire.transport
    away = Away(three.path, replace)

    def move(request: httpx2.Request) -> httpx2.Response:
        away.__enter__()
        return transport.handle_request(request)

    three.wire.faults.append((CREATE, move))
    with pytest.raises((LedgerLostError, DatabaseFailedError)):
        three.start()
    away.__exit__()

    _finish(three)
    assert three.wire.posts() == 1


def test_a_run_that_collects_does_not_begin_in_the_ledger_of_others(three: Project) -> None:
    three.start(run_id="submits")

    def begun_anew(path: Path) -> None:
        _a_new_database(path)
        three.start("reviews", run_id="another")

    with Away(three.path, begun_anew), pytest.raises(LedgerLostError, match="run submits"):
        three.start(run_id="collects", collects_for="submits")

    assert three.wire.posts() == 1


def test_a_run_that_collects_for_another_asks_nothing_anew_even_if_all_is_done(
    three: Project,
) -> None:
    """Its configuration is a copy of the other's, so it may ask for a refresh as well."""
    three.start(run_id="submits", refresh=True)
    three.end_batches()
    done = three.start(run_id="joins")
    assert done.waiting is None

    run = three.start(run_id="collects", collects_for="submits", refresh=True)

    assert run.waiting is None
    assert three.wire.posts() == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_opened_is_an_error(three: Project) -> None:
    three.path.chmod(0o444)

    with pytest.raises(DatabaseFailedError, match="Permission denied"):
        three.start()

    three.path.chmod(0o644)
    _finish(three)


# --- what DuckDB has not noticed ---------------------------------------------------------------

_COMMIT = """
import sys, duckdb
with duckdb.connect(sys.argv[1], config={"custom_user_agent": "dagster"}) as connection:
    connection.execute("CREATE TABLE others AS SELECT 1 AS one")
"""


def test_what_another_process_commits_while_the_database_is_being_opened_is_not_lost(
    tmp_path: Path,
) -> None:
    file = tmp_path / "warehouse.duckdb"
    with duckdb.connect(str(file), config=CONFIG) as connection:
        connection.execute("CREATE TABLE ours (one INTEGER)")
    opened: list[int] = []

    @contextmanager
    def connect() -> Generator[Connection]:
        opened.append(1)
        if len(opened) == 1:  # DuckDB has read what it will not read again
            subprocess.run([sys.executable, "-c", _COMMIT, str(file)], check=True)
        with closing(duckdb.connect(str(file), config=CONFIG)) as connection:
            yield connection

    warehouse = Warehouse(connect, file=file)
    warehouse.transact(lambda connection: connection.execute("INSERT INTO ours VALUES (1)"))

    assert len(opened) == 2
    assert warehouse.transact(lambda c: rows(c, "SELECT * FROM ours, others")) == [(1, 1)]


_STRESS = """
import random, sys, time
from contextlib import closing, contextmanager
from pathlib import Path
import duckdb
from dagster_claude_batch.warehouse import Warehouse

file, me, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

@contextmanager
def connect():
    with closing(duckdb.connect(str(file), config={"custom_user_agent": "dagster"})) as connection:
        yield connection

def work(connection):
    connection.execute(f"CREATE TABLE t_{me}_{done} AS SELECT range AS i FROM range(50)")

pause = lambda seconds: time.sleep(random.uniform(0.0005, 0.004))
warehouse, done, until = Warehouse(connect, file=file, sleep=pause), 0, time.time() + seconds
while time.time() < until:
    warehouse.transact(work)
    done += 1
print(done)
"""


@pytest.mark.exhaustive
def test_many_processes_lose_nothing_that_each_other_commits(tmp_path: Path) -> None:
    file = str(tmp_path / "warehouse.duckdb")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _STRESS, file, str(n), "60"], stdout=subprocess.PIPE, text=True
        )
        for n in range(6)
    ]
    done = sum(int(process.communicate()[0]) for process in running)

    with closing(duckdb.connect(file, config=CONFIG)) as connection:
        found = connection.execute("SELECT count(*) FROM duckdb_tables()").fetchone()
    assert found == (done,)
    assert done > 50
