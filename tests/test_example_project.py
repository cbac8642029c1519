"""The example, as a newcomer runs it."""

import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import duckdb
import psutil
import pytest


def _start(home: Path, rows: str) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANTHROPIC_")}
    return subprocess.Popen(
        [sys.executable, "-m", "example_project"],
        env={**env, "EXAMPLE_HOME": str(home), "EXAMPLE_ROWS": rows, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _processes_of(home: Path) -> list[int]:
    """Ids of the processes that were started for this home, by their environment."""
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("EXAMPLE_HOME") == str(home):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.parametrize(
    ("rows", "total"),
    [("40", 120), pytest.param("", 18_513, marks=pytest.mark.exhaustive)],
    ids=["a few of each", "all"],
)
def test_the_example_answers_every_snippet_while_nothing_runs(
    tmp_path: Path, rows: str, total: int
) -> None:
    with _start(tmp_path, rows) as example:
        output, _ = example.communicate(timeout=1_200)

    assert example.returncode == 0, output
    assert "Nothing is running while the batches are out: 0 runs in progress" in output
    assert "The backfill is COMPLETED_SUCCESS" in output
    (answers, failures) = re.search(
        rf"{total:,} snippets = ([\d,]+) answers \+ ([\d,]+) failures", output
    ).groups()  # type: ignore[union-attr]
    with closing(duckdb.connect(str(tmp_path / "simulated" / "warehouse.duckdb"))) as connection:
        counted = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            for table in ("snippet_sentiment", "snippet_sentiment_failures")
        ]
    assert counted == [int(number.replace(",", "")) for number in (answers, failures)]
    assert _processes_of(tmp_path) == []
    assert len(_spent(output)) == 3
    for at_most, cost, billed in _spent(output):
        assert Decimal(0) < cost == billed < at_most


def _spent(output: str) -> list[tuple[Decimal, ...]]:
    """At most, cost and bill of each partition, as they are printed."""
    lines = re.findall(
        r"^ *(?:amazon_reviews|movie_reviews|tweets) +[\d,]+ +([\d.]+) +([\d.]+) +([\d.]+) *$",
        output,
        re.MULTILINE,
    )
    return [tuple(Decimal(amount) for amount in line) for line in lines]


def test_an_interrupted_example_leaves_no_process_behind(tmp_path: Path) -> None:
    with _start(tmp_path, "40") as example:
        assert example.stdout is not None
        for line in example.stdout:
            if "Dagster is up" in line:
                break
        assert len(_processes_of(tmp_path)) > 1
        example.send_signal(signal.SIGINT)
        example.communicate(timeout=300)

    assert example.returncode == 128 + signal.SIGINT
    assert _processes_of(tmp_path) == []
