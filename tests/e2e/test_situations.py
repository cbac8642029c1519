"""The table of what is shown in each situation."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import e2e_situations
import pytest
from dagster_storage import STORAGE
from e2e_situations import ROWS, Shown, record, table, unseen

HERE = Path(__file__).parent
OUT = Shown({"materializing": 2, "missing": 1}, "REQUESTED", queued=2, batches_out=2)
DONE = Shown({"materialized": 2, "missing": 1}, "COMPLETED_SUCCESS")
PRINT = "PYTHONPATH=.:e2e {python} -m e2e_situations {files}"


def _noted(situation: str, dagster: str, end: Shown = DONE) -> Mapping[str, Any]:
    shown = {"while_waiting": vars(OUT), "at_the_end": vars(end)}
    return {"situation": situation, "dagster": dagster, "storage": "SQLite", **shown}


def test_what_is_recorded_becomes_a_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "situations.jsonl"
    monkeypatch.setenv("SITUATIONS", str(file))

    record("partitions: two", OUT, DONE)
    printed = subprocess.run(  # noqa: S602  # a command as people type it
        PRINT.format(python=sys.executable, files=file),
        shell=True,
        cwd=HERE.parent,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert printed.returncode == 0, printed.stderr
    _, _, line, *_ = printed.stdout.splitlines()
    assert line.startswith(
        "| partitions: two "
        "| 2 materializing, 1 missing; backfill REQUESTED; 0 started, 2 queued; 2 out "
        "| 2 materialized, 1 missing; backfill COMPLETED_SUCCESS; 0 started, 0 queued; 0 out |"
    )
    assert line.endswith(f"{json.loads(file.read_text())['dagster']} {STORAGE} |")


def test_the_table_keeps_the_order_of_its_rows_and_shows_where_dagsters_differ() -> None:
    lines = table(
        [
            _noted(f"{ROWS[1]}: b", "1.2", DONE),
            _noted(f"{ROWS[0]}: z", "1.1", DONE),
            _noted(f"{ROWS[0]}: z", "1.2", DONE),
            _noted(f"{ROWS[0]}: a", "1.1", OUT),
            _noted(f"{ROWS[0]}: a", "1.2", DONE),
        ]
    ).splitlines()[2:]

    assert [line.split(" | ")[0] for line in lines] == [
        "| partitions: a",
        "| partitions: a",
        "| partitions: z",
        "| backfill policy: b",
    ]
    assert lines[2].endswith("| 1.1 SQLite, 1.2 SQLite |")


def test_a_situation_that_belongs_to_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with none of"):
        record("something else: here", OUT, DONE)


def test_the_matrix_prints_the_table_by_the_same_command() -> None:
    matrix = (HERE.parent.parent / ".ci" / "matrix").read_text()

    assert PRINT.partition(" {python}")[0] in matrix
    assert "-m e2e_situations" in matrix
    assert PRINT.format(python="python", files="FILE…") in str(e2e_situations.__doc__)


def test_rows_are_named_of_which_nothing_was_recorded_or_not_everywhere() -> None:
    noted = [_noted(f"{row}: x", "1.2") for row in ROWS[1:]]
    noted += [_noted(f"{row}: x", "1.1") for row in ROWS[2:]]

    assert unseen(noted).splitlines() == [
        "Nothing was recorded of: partitions",
        "Nothing was recorded of: backfill policy (1.1 SQLite)",
    ]
    assert unseen([_noted(f"{row}: x", "1.2") for row in ROWS]) == ""
