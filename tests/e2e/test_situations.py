"""The table of what is shown in each situation."""

import json
from pathlib import Path

import pytest
from dagster_storage import STORAGE
from e2e_situations import ROWS, Shown, main, record, table

OUT = Shown({"materializing": 2, "missing": 1}, "REQUESTED", queued=2, batches_out=2)
DONE = Shown({"materialized": 2, "missing": 1}, "COMPLETED_SUCCESS")


def test_what_is_recorded_becomes_a_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "situations.jsonl"
    monkeypatch.setenv("SITUATIONS", str(file))

    record("partitions: two", OUT, DONE)
    main([str(file)])

    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "| partitions: two "
        "| 2 materializing, 1 missing; backfill REQUESTED; 0 started, 2 queued; 2 out "
        "| 2 materialized, 1 missing; backfill COMPLETED_SUCCESS; 0 started, 0 queued; 0 out |"
    )
    assert line.endswith(f"{json.loads(file.read_text())['dagster']} {STORAGE} |")


def test_the_table_keeps_the_order_of_its_rows_and_shows_where_dagsters_differ() -> None:
    def noted(situation: str, dagster: str, end: Shown) -> dict[str, object]:
        shown = {"while_waiting": vars(OUT), "at_the_end": vars(end)}
        return {"situation": situation, "dagster": dagster, "storage": "SQLite", **shown}

    lines = table(
        [
            noted(f"{ROWS[1]}: b", "1.2", DONE),
            noted(f"{ROWS[0]}: z", "1.1", DONE),
            noted(f"{ROWS[0]}: z", "1.2", DONE),
            noted(f"{ROWS[0]}: a", "1.1", OUT),
            noted(f"{ROWS[0]}: a", "1.2", DONE),
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
