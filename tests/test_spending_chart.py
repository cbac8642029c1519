"""The asset that shows what was spent: its chart, its table, and what it reads."""

import base64
import re
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree as ET

import dagster as dg
import duckdb
import pytest
from dagster_duckdb import DuckDBResource
from hypothesis import given
from hypothesis import strategies as st

from dagster_claude_batch import (
    LocalClaudeBatchResource,
    build_claude_batch_asset,
    build_claude_batch_spending_asset,
)
from dagster_claude_batch.spending import Spent, chart_of, table_of

TODAY = date(2026, 11, 27)


def bars(svg: str) -> list[ET.Element]:
    """The rectangles that say what they are."""
    root = ET.fromstring(svg)  # noqa: S314  # our own
    return [each for each in root.iter() if each.tag.endswith("rect") and len(each)]


def spent(day: int, asset: str, usd: str, *, rows: int = 10, unknown: int = 0) -> Spent:
    return Spent(TODAY - timedelta(days=day), asset, Decimal(usd), rows, unknown)


def test_each_day_and_asset_has_a_bar_as_high_as_what_it_cost() -> None:
    found = [spent(1, "a", "1"), spent(1, "b", "3"), spent(0, "a", "2")]

    drawn = bars(chart_of(found, TODAY, 30))

    heights = {each[0].text: float(each.attrib["height"]) for each in drawn}
    assert heights.keys() == {
        "2026-11-26 a: 1.000000 USD",
        "2026-11-26 b: 3.000000 USD",
        "2026-11-27 a: 2.000000 USD",
    }
    unit = heights["2026-11-26 a: 1.000000 USD"]
    assert heights["2026-11-26 b: 3.000000 USD"] == pytest.approx(3 * unit, abs=0.1)
    assert heights["2026-11-27 a: 2.000000 USD"] == pytest.approx(2 * unit, abs=0.1)
    assert len({each.attrib["fill"] for each in drawn}) == 2


@given(
    st.lists(
        st.builds(
            spent,
            st.integers(0, 29),
            st.text(min_size=1, max_size=5),
            st.decimals(0, 10**6, places=6).map(str),
        ),
        max_size=20,
    )
)
def test_bars_stand_on_each_other_within_the_picture(found: list[Spent]) -> None:
    drawn = bars(chart_of(found, TODAY, 30))

    assert len(drawn) == len(found)
    for each in drawn:
        assert 0 <= float(each.attrib["y"]) <= 240
        assert 0 <= float(each.attrib["x"]) + float(each.attrib["width"]) <= 420
        assert float(each.attrib["y"]) + float(each.attrib["height"]) <= 222.2


def test_nothing_spent_is_a_chart_and_a_sentence() -> None:
    assert bars(chart_of([], TODAY, 30)) == []
    assert table_of([]) == "Nothing was spent."


def test_the_table_begins_with_what_costs_most() -> None:
    lines = table_of([spent(1, "a", "1"), spent(0, "a", "0.5"), spent(1, "b", "3")]).splitlines()

    assert lines[2:] == ["| b | 3.000000 | 10 | 300.000000 |", "| a | 1.500000 | 20 | 75.000000 |"]


def test_the_asset_shows_what_the_ledger_knows(tmp_path: Path) -> None:
    database = str(tmp_path / "warehouse.duckdb")
    with duckdb.connect(database) as connection:
        connection.execute(
            "CREATE TABLE texts AS SELECT i AS id, 'How is it?' AS text FROM range(4) r(i)"
        )
    asked = build_claude_batch_asset(
        "asked", source="texts", row_key="id", prompt="{{ text }} {{ id }}", wait="run"
    )
    shown = build_claude_batch_spending_asset()
    resources = {
        "duckdb": DuckDBResource(database=database),
        "claude_batch": LocalClaudeBatchResource(
            path=str(tmp_path / "simulator"), processing_seconds=[0, 0], poll_interval_seconds=0.1
        ),
    }

    empty = dg.materialize([shown], resources=resources)
    assert (
        empty.asset_materializations_for_node("claude_batch_spending")[0].metadata["by_asset"].value
        == "Nothing was spent."
    )
    dg.materialize([asked], resources=resources)
    found = dg.materialize([shown], resources=resources)

    (event,) = found.asset_materializations_for_node("claude_batch_spending")
    with duckdb.connect(database) as connection:
        ((cost,),) = connection.execute("SELECT sum(_cost_usd) FROM asked").fetchall()
    assert event.metadata["spent_usd"].value == pytest.approx(float(cost))
    assert event.metadata["spent_today_usd"].value == pytest.approx(float(cost))
    assert event.metadata["rows"].value == 4
    (encoded,) = re.findall(r"base64,([^)]+)\)", str(event.metadata["chart"].value))
    assert len(bars(base64.b64decode(encoded).decode())) == 1
