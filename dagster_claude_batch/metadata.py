"""What Dagster shows of a partition's end: counts, tokens, money, a preview, and the failures."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import dagster as dg

from dagster_claude_batch.advice import advise
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.held_run import counted
from dagster_claude_batch.report import PartitionReport, Usage
from dagster_claude_batch.tables import DESCRIPTIONS

IDS_SHOWN: Final = 20
"""Ids and names in one value of metadata; the ledger has them all."""

Metadata = dict[str, Any]

SHOWN: Final = {
    "rows": "Rows of the partition that have an answer or a failure.",
    "answered": "Rows with an answer.",
    "failed": "Rows without one.",
    "failed/<error type>": "Of these, the ones that failed so.",
    "failure_rate": "Share of rows that failed, 0 to 1.",
    "failures_sql": "The query that lists them, if there are any.",
    "cost_usd": "What this materialization's requests cost, in USD; else, why nobody knows.",
    "cost_usd_per_1000_rows": "The same for each 1,000 rows that it answered.",
    "cost_usd_standard_price": "What the same requests would have cost outside batches.",
    "saving_usd": "The difference.",
    "preview": "The first answers.",
    "advice": "What another `max_tokens`, packing or caching would save, if anything.",
    "requests_sent": "Requests of this materialization, retries included.",
    "requests_retried": "Of these, second and later attempts.",
    "rows_deduplicated": "Rows that another row's request answered.",
    "earlier_answers_kept": "Rows whose refresh failed, and which keep the answer they had.",
    "anthropic.input_tokens": "Tokens of prompts, without cached ones.",
    "anthropic.output_tokens": "Tokens of answers, thinking included.",
    "anthropic.cache_read_tokens": "Tokens read from the prompt cache.",
    "anthropic.cache_write_tokens": "Tokens written to the prompt cache.",
    "cache_hit_rate": "Share of the prompts' tokens that were read from the cache, if it is used.",
    "max_tokens": "The most tokens of one answer, as declared.",
    "output_tokens_median": "Tokens that half of the answers stay below.",
    "output_tokens_p99": "Tokens that 99 of 100 answers stay below.",
    "batches": "Batches of this materialization.",
    "batch_ids": "Their ids, the first 20.",
    "waited_seconds": "From the first sending until the last batch had ended.",
    "waiting_for_batches": "0: nothing is out any more.",
    "waiting_for_requests": "0 as well.",
    "failures_table": "The table that holds the rows without an answer.",
    "dagster/table_name": "The answers table.",
    "dagster/row_count": "Its rows, over all partitions.",
    "dagster/partition_row_count": "Its rows of this partition.",
    "dagster/column_schema": "Its columns; those of `output` with the fields' descriptions.",
}
"""The metadata of a materialization, in the order in which people see it."""


def sum_by_type(reports: Sequence[PartitionReport]) -> dict[str, int]:
    """How many rows of all partitions failed in which way."""
    summed: dict[str, int] = {}
    for report in reports:
        for error_type, count in report.failed_by_type.items():
            summed[error_type] = summed.get(error_type, 0) + count
    return summed


def failure_metadata(declaration: Declaration, bad: Sequence[PartitionReport]) -> Mapping[str, Any]:
    """What the error of a run shows of the partitions that failed."""
    return {
        "failed_rows": sum(report.failed for report in bad),
        "rows_left_for_a_cap": sum(report.left for report in bad),
        "failures_sql": failures_sql(declaration, bad),
        **{f"failed/{kind}": count for kind, count in sum_by_type(bad).items()},
    }


def metadata_of(declaration: Declaration, report: PartitionReport) -> Metadata:
    """What a partition's materialization shows. Numbers are plotted over time."""
    return {
        **_rows(declaration, report),
        **_money(declaration, report),
        **_answers(declaration, report),
        **_requests(declaration, report),
        "waited_seconds": report.waited_seconds,
        # The asset's page would go on showing what was said while it waited.
        "waiting_for_batches": 0,
        "waiting_for_requests": 0,
        **_tables(declaration, report),
    }


def _rows(declaration: Declaration, report: PartitionReport) -> Metadata:
    """How many rows have an answer, and how to find those that have none."""
    shown: Metadata = {
        "rows": report.rows,
        "answered": report.answered,
        "failed": report.failed,
        **{f"failed/{kind}": count for kind, count in report.failed_by_type.items()},
        "failure_rate": report.failure_rate,
    }
    if report.failed:
        shown["failures_sql"] = failures_sql(declaration, [report])
    return shown


def _answers(declaration: Declaration, report: PartitionReport) -> Metadata:
    """The first answers, and what could be asked better."""
    shown: Metadata = {}
    if report.preview:
        shown["preview"] = _preview(report.preview)
    advice = list(advise(declaration, report.use))
    if advice:
        shown["advice"] = dg.MetadataValue.md("\n".join(f"- {each}" for each in advice))
    return shown


def _requests(declaration: Declaration, report: PartitionReport) -> Metadata:
    """What was sent, and the tokens that it took."""
    usage, use, ids = report.usage, report.use, report.batch_ids
    shown: Metadata = {"requests_sent": report.sent, "requests_retried": report.retried}
    if report.deduplicated:
        shown["rows_deduplicated"] = report.deduplicated
    if report.kept_despite_failure:
        shown["earlier_answers_kept"] = report.kept_despite_failure
    shown |= {
        "anthropic.input_tokens": usage.input_tokens,
        "anthropic.output_tokens": usage.output_tokens,
        "anthropic.cache_read_tokens": usage.cache_read_tokens,
        "anthropic.cache_write_tokens": usage.cache_write_tokens,
    }
    if declaration.shape.may_cache:
        shown["cache_hit_rate"] = usage.cache_hit_rate
    return {
        **shown,
        "max_tokens": declaration.max_tokens,
        "output_tokens_median": use.median_output_tokens,
        "output_tokens_p99": use.p99_output_tokens,
        "batches": len(ids),
        "batch_ids": ", ".join(ids[:IDS_SHOWN]) + (" …" if len(ids) > IDS_SHOWN else ""),
    }


def _tables(declaration: Declaration, report: PartitionReport) -> Metadata:
    """Where the rows are."""
    shown: Metadata = {
        "failures_table": str(declaration.failures),
        "dagster/table_name": str(declaration.answers),
        "dagster/row_count": report.answers_in_table,
    }
    if report.partition is not None:
        shown["dagster/partition_row_count"] = report.answered
    shown["dagster/column_schema"] = _column_schema(declaration, report)
    return shown


def failures_sql(
    declaration: Declaration, reports: Sequence[PartitionReport]
) -> dg.MetadataValue[Any]:
    """The query that lists the failed rows of these partitions, in Markdown."""
    condition = " OR ".join(
        "_partition IS NULL"
        if report.partition is None
        else "_partition = '" + report.partition.replace("'", "''") + "'"
        for report in reports
    )
    sql = f"SELECT * FROM {declaration.failures.sql} WHERE {condition}"
    return dg.MetadataValue.md(f"```sql\n{sql}\n```")


def _money(declaration: Declaration, report: PartitionReport) -> Metadata:
    """What the partition's requests cost, in USD."""
    usage = report.usage
    if usage.cost_usd is None:
        return {"cost_usd": _why_unknown(usage)}
    shown: Metadata = {"cost_usd": float(usage.cost_usd)}
    if usage.answers:
        shown["cost_usd_per_1000_rows"] = float(1_000 * usage.cost_usd / usage.answers)
    prices = declaration.batch_prices()
    standard = usage.standard_usd(prices.base.web_search if prices else Decimal(0))
    if standard is not None:
        shown["cost_usd_standard_price"] = float(standard)
        shown["saving_usd"] = float(standard - usage.cost_usd)
    return shown


def _why_unknown(usage: Usage) -> str:
    """Why nobody can say what was paid."""
    if not usage.untold:
        return "unknown: no batch price is known for this model"
    requests = counted(usage.untold, "request", "requests")
    return f"unknown: no result that could be read says what {requests} cost"


def _column_schema(declaration: Declaration, report: PartitionReport) -> dg.TableSchema:
    of_output = {column.name: column.description for column in declaration.output.columns}
    described = {**of_output, **DESCRIPTIONS}
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name, kind, described.get(name)) for name, kind in report.columns.items()
        ]
    )


def _preview(preview: Sequence[Mapping[str, Any]]) -> dg.MetadataValue[Any]:
    names = list(preview[0])
    table = [names, ["---"] * len(names)]
    table += [[_cell(values[name]) for name in names] for values in preview]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(cells)} |" for cells in table))


def _cell(value: object) -> str:
    """A value as the text of a Markdown table's cell: no link, no picture, no tag."""
    text = "" if value is None else str(value)
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split())).replace("<", "&lt;")


_MARKDOWN: Final = re.compile(r"[\\`\[\]|]")
