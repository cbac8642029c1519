"""What Claude has cost, as a chart in the UI: an asset over the view ``claude_batch.spending``."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html import escape
from typing import Any, Final

import dagster as dg

from dagster_claude_batch import ledger
from dagster_claude_batch.connecting import warehouse_of
from dagster_claude_batch.upstream import UpstreamLike
from dagster_claude_batch.warehouse import Connection, rows

_COLOURS: Final = ("#4f46e5", "#0d9488", "#d97706", "#be185d", "#65a30d", "#0369a1")
_OTHERS: Final = "#9ca3af"
_WIDTH, _HEIGHT, _MARGIN, _LINE = 420, 240, 8, 18


@dataclass(frozen=True)
class Spent:
    """What one asset's requests of one day (UTC, of sending) have cost.

    ``usd`` is what is known of it; of so many rows nobody knows.
    """

    day: date
    asset: str
    usd: Decimal
    rows: int
    unknown: int


def build_claude_batch_spending_asset(
    key: str | Sequence[str] | dg.AssetKey = "claude_batch_spending",
    *,
    days: int = 30,
    duckdb_resource: str = "duckdb",
    deps: Sequence[UpstreamLike] | None = None,
    group_name: str | None = None,
    automation_condition: dg.AutomationCondition[Any] | None = None,
) -> dg.AssetsDefinition:
    """Build an asset that shows what was spent, by day and asset, as a chart and as numbers.

    It reads the view ``claude_batch.spending`` of the ledger, writes nothing, and asks nobody.

    Args:
        key: The asset's key.
        days: So many days up to today (UTC) are shown.
        duckdb_resource: Key of the resource that opens the DuckDB database.
        deps: Assets after which it is to be materialized.
        group_name: The asset's group.
        automation_condition: When it is to be materialized by itself.
    """

    @dg.asset(
        key=dg.AssetKey.from_coercible(key),
        description="What Claude has cost in message batches, by day and asset.",
        required_resource_keys={duckdb_resource},
        deps=deps,
        group_name=group_name,
        kinds={"anthropic", "duckdb"},
        automation_condition=automation_condition,
    )
    def spending(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        today = datetime.now(UTC).date()
        database = getattr(context.resources, duckdb_resource)
        warehouse = warehouse_of(database, log=context.log)
        found = warehouse.transact(lambda connection: spent_since(connection, today, days))
        return dg.MaterializeResult(metadata=_metadata(found, today, days))

    return spending


def spent_since(connection: Connection, today: date, days: int) -> list[Spent]:
    """What was spent on each of the last days; nothing where there is no ledger."""
    is_there = ledger.is_ledger(connection) and rows(
        connection,
        "SELECT 1 FROM duckdb_views() WHERE schema_name = 'claude_batch' "
        "AND view_name = 'spending' AND database_name = current_database()",
    )
    if not is_there:
        return []
    found = rows(
        connection,
        "SELECT day, asset, coalesce(sum(cost_usd), 0), sum(rows)::BIGINT, "
        "sum(rows_of_unknown_cost)::BIGINT FROM claude_batch.spending "
        "WHERE day > $before GROUP BY ALL ORDER BY ALL",
        {"before": today - timedelta(days=days)},
    )
    return [Spent(*values) for values in found]


def _metadata(found: Sequence[Spent], today: date, days: int) -> dict[str, Any]:
    by_asset = _by_asset(found)
    unknown = sum(each.unknown for each in found)
    metadata: dict[str, Any] = {
        "spent_usd": float(sum(by_asset.values())),
        "spent_today_usd": float(sum(each.usd for each in found if each.day == today)),
        "rows": sum(each.rows for each in found),
        "days": days,
        "by_asset": dg.MetadataValue.md(table_of(found)),
        "chart": dg.MetadataValue.md(f"![Spending]({_as_address(chart_of(found, today, days))})"),
    }
    if unknown:
        metadata["rows_of_unknown_cost"] = unknown
    return metadata


def _by_asset(found: Sequence[Spent]) -> Mapping[str, Decimal]:
    """The assets, those first that cost most."""
    names = {each.asset for each in found}
    sums = {name: sum((s.usd for s in found if s.asset == name), Decimal(0)) for name in names}
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def table_of(found: Sequence[Spent]) -> str:
    """The assets with what they cost, as a table in Markdown."""
    lines = ["| asset | USD | rows | USD for 1,000 rows |", "|---|---:|---:|---:|"]
    for name, usd in _by_asset(found).items():
        count = sum(each.rows for each in found if each.asset == name)
        lines.append(f"| {name} | {usd:,.6f} | {count:,} | {1_000 * usd / count:,.6f} |")
    return "\n".join(lines) if found else "Nothing was spent."


def chart_of(found: Sequence[Spent], today: date, days: int) -> str:
    """A bar for each day, in which each asset has its colour, as SVG."""
    assets = list(_by_asset(found))
    colours = {name: _COLOURS[n] for n, name in enumerate(assets[: len(_COLOURS)])}
    of_day = [today - timedelta(days=days - 1 - number) for number in range(days)]
    totals = [sum((s.usd for s in found if s.day == day), Decimal(0)) for day in of_day]
    highest = max(totals, default=Decimal(0)) or Decimal(1)
    step = (_WIDTH - _MARGIN) / days
    shapes: list[str] = []
    for number, day in enumerate(of_day):
        below = 0.0
        for each in sorted((s for s in found if s.day == day), key=lambda s: assets.index(s.asset)):
            height = float(each.usd / highest) * (_HEIGHT - 2 * _LINE)
            y = _HEIGHT - _LINE - below - height
            said = _escaped(f"{day:%Y-%m-%d} {each.asset}: {each.usd:.6f} USD")
            shapes.append(
                f'<rect x="{_MARGIN + number * step + step * 0.1:.1f}" y="{y:.1f}" '
                f'width="{step * 0.8:.1f}" height="{height:.1f}" '
                f'fill="{colours.get(each.asset, _OTHERS)}"><title>{said}</title></rect>'
            )
            below += height
    texts = [
        (2, _LINE - 6, f"{highest:.4g} USD" if any(totals) else "0 USD"),
        (_MARGIN, _HEIGHT - 2, f"{of_day[0]:%Y-%m-%d}"),
        (_WIDTH - 70, _HEIGHT - 2, f"{today:%Y-%m-%d}"),
    ]
    for number, name in enumerate(assets[: len(_COLOURS)]):
        y = _HEIGHT + _LINE * (number + 1)
        shapes.append(
            f'<rect x="{_MARGIN}" y="{y - 10}" width="10" height="10" fill="{colours[name]}"/>'
        )
        texts.append((_MARGIN + 16, y, name))
    if len(assets) > len(_COLOURS):
        y = _HEIGHT + _LINE * (len(_COLOURS) + 1)
        shapes.append(f'<rect x="{_MARGIN}" y="{y - 10}" width="10" height="10" fill="{_OTHERS}"/>')
        texts.append((_MARGIN + 16, y, f"{len(assets) - len(_COLOURS)} more"))
    height = _HEIGHT + _LINE * (min(len(assets), len(_COLOURS) + 1) + 1)
    written = [f'<text x="{x}" y="{y}">{_escaped(text)}</text>' for x, y, text in texts]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12">'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>{"".join([*shapes, *written])}'
        "</svg>"
    )


def _escaped(text: str) -> str:
    """Text for XML, which has no control characters, however they are written."""
    return escape("".join(letter if letter.isprintable() else "\ufffd" for letter in text))


def _as_address(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
