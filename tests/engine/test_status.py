"""`claude-batch status`: what the ledger knows to be out."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from kit import Holder, Project

from dagster_claude_batch.command import LOCKED, NO_LEDGER, main
from dagster_claude_batch.status import Out, table_of

pytestmark = pytest.mark.opens_anew  # as another process does

Make = Callable[..., Project]
Captured = pytest.CaptureFixture[str]


def listed(project: Project, capsys: Captured) -> list[dict[str, Any]]:
    """What `--json` prints."""
    status = main(["status", str(project.path), "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    found: list[dict[str, Any]] = json.loads(printed.out)
    return found


def said(project: Project, capsys: Captured) -> str:
    """What is printed for people."""
    assert main(["status", str(project.path)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def waves(project: Make) -> Project:
    """Ten rows in chunks of four, of which only one is let out at a time."""
    made = project(chunk_size=4, claude={"max_in_flight_requests": 4})
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    return made


def test_each_batch_that_is_out_is_listed_with_its_cost_and_what_is_still_to_be_sent(
    waves: Project, capsys: Captured
) -> None:
    waves.start()

    out, planned = listed(waves, capsys)

    (batch,) = waves.claude.simulator.batches()
    ((most,),) = waves.sql("SELECT most_usd FROM claude_batch.chunks WHERE state = 'submitted'")
    assert (out["asset"], out["partitions"]) == ("sentiment", ["tweets"])
    assert (out["state"], out["batch_id"], out["requests"]) == ("submitted", batch.id, 4)
    assert Decimal(out["most_usd"]) == most > 0
    assert batch.created_at <= datetime.fromisoformat(out["since"]) <= waves.claude.now()
    assert (planned["state"], planned["batch_id"]) == ("planned", None)
    assert (planned["chunks"], planned["requests"]) == (2, 6)


def test_people_read_how_long_it_is_and_the_sum(waves: Project, capsys: Captured) -> None:
    waves.start()

    text = said(waves, capsys)

    (batch,) = waves.claude.simulator.batches()
    assert batch.id in text
    assert "2 to be sent" in text
    assert "4 requests are out, for 0." in text


def test_a_batch_in_doubt_is_said_to_be_one(waves: Project, capsys: Captured) -> None:
    waves.wire.lose_call("POST /v1/messages/batches", httpx2.ReadTimeout)
    waves.start()

    states = [each["state"] for each in listed(waves, capsys)]

    assert states == ["in doubt", "planned"]
    assert "?" in said(waves, capsys)


def test_what_has_landed_is_not_listed(waves: Project, capsys: Captured) -> None:
    waves.materialize()

    assert listed(waves, capsys) == []
    assert said(waves, capsys) == "Nothing is out, and nothing is planned.\n"


def test_what_a_cancelled_materialization_has_out_is_marked(
    waves: Project, capsys: Captured
) -> None:
    run = waves.start()
    run.engine.cancel(run.materializations[0])

    (out,) = listed(waves, capsys)

    assert out["materialization_state"] == "cancelled"
    assert "(cancelled)" in said(waves, capsys)


def test_a_price_that_nobody_knows_is_not_shown_as_nothing(
    waves: Project, capsys: Captured
) -> None:
    waves.start()
    waves.sql("UPDATE claude_batch.chunks SET most_usd = NULL")

    assert listed(waves, capsys)[0]["most_usd"] is None
    assert "and more whose price is not known" in said(waves, capsys)


@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["for people", "for programs"])
def test_a_database_without_a_ledger_is_said_to_have_none(
    project: Make, capsys: Captured, json_too: list[str]
) -> None:
    made = project()
    made.load([("tweets", "t0", "x")])

    assert main(["status", str(made.path), *json_too]) == NO_LEDGER

    printed = capsys.readouterr()
    assert f"{made.path} has no ledger: nothing was ever asked from it." in printed.err
    assert printed.out == ("[]\n" if json_too else "")


def test_a_run_that_writes_is_waited_for(waves: Project, capsys: Captured) -> None:
    waves.start()
    holder = Holder(waves.path)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        holder.let_go()

    assert main(["status", str(waves.path)], sleep=pause) == 0
    assert len(pauses) == 1
    assert "4 requests are out" in capsys.readouterr().out


def test_a_database_that_stays_locked_has_an_exit_code_of_its_own(
    waves: Project, capsys: Captured
) -> None:
    waves.start()
    holder = Holder(waves.path)

    assert main(["status", str(waves.path), "--wait", "0"]) == LOCKED
    holder.let_go()

    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"PID {holder.process.pid}" in printed.err


def test_reading_makes_no_database(tmp_path: Path, capsys: Captured) -> None:
    missing = tmp_path / "missing.duckdb"

    assert main(["status", str(missing)]) == 1

    assert str(missing) in capsys.readouterr().err
    assert not missing.exists()


@pytest.mark.parametrize(("step", "word"), [(-1, "brings it up to date"), (1, "Upgrade")])
def test_a_ledger_of_another_version_is_an_error_with_its_cure(
    waves: Project, capsys: Captured, step: int, word: str
) -> None:
    waves.start()
    waves.sql(f"UPDATE claude_batch.ledger SET version = version + {step}")

    assert main(["status", str(waves.path)]) == 1

    assert word in capsys.readouterr().err


def test_many_partitions_are_counted_and_hours_told() -> None:
    now = datetime(2026, 11, 2, 12, tzinfo=UTC)
    since = now - timedelta(hours=5, minutes=7)
    out = Out("a", tuple("bcdef"), "open", "submitted", "msgbatch_1", 1, 1_500, since, Decimal(2))

    _, line, total = table_of([out], now)

    assert "b, c, d and 2 more" in line
    assert line.split()[-7:] == ["1,500", "5", "h", "07", "min", "ago", "2.000000"]
    assert total == "1,500 requests are out, for 2.000000 USD at most."
