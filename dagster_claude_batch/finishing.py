"""The end of a run: which partitions are materialized, which fail, and what is said of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from typing import Any, Final

import dagster as dg

from dagster_claude_batch.advice import advise
from dagster_claude_batch.dagster_internals import BACKFILL_TAG, ends_stalled_backfills
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.held_run import counted
from dagster_claude_batch.report import PartitionReport, Usage
from dagster_claude_batch.tables import DESCRIPTIONS

EVERY_ROW_ANSWERED: Final = "every_row_answered"
FAILURE_RATE: Final = "failure_rate"

_IDS_SHOWN: Final = 20

Metadata = dict[str, Any]


def check_specs(key: dg.AssetKey, declaration: Declaration) -> list[dg.AssetCheckSpec]:
    """The two checks that each batch asset has."""
    return [
        dg.AssetCheckSpec(
            EVERY_ROW_ANSWERED,
            asset=key,
            description="Each row that was asked has an answer; a warning counts those that do "
            f"not. They stand in {declaration.failures}, with the reason. Rows that have come or "
            "changed since are counted too, but are no warning.",
        ),
        dg.AssetCheckSpec(
            FAILURE_RATE,
            asset=key,
            description="At most the share of rows that `max_failure_rate` tolerates "
            f"({declaration.max_failure_rate:.2%}) has failed.",
        ),
    ]


def check_results(
    key: dg.AssetKey, declaration: Declaration, reports: Sequence[PartitionReport]
) -> list[dg.AssetCheckResult]:
    """Judge a run's partitions together; without reports, nothing has ever been asked."""
    failed = sum(report.failed for report in reports)
    unasked = [report for report in reports if not report.is_asked]
    worst = max((report.failure_rate for report in reports), default=0.0)
    by_type = _sum_by_type(reports)
    partitions = ", ".join(str(report.partition) for report in reports[:_IDS_SHOWN])
    about = {"partitions": partitions} if any(report.partition for report in reports) else {}
    return [
        dg.AssetCheckResult(
            asset_key=key,
            check_name=EVERY_ROW_ANSWERED,
            passed=bool(reports) and failed == 0 and not unasked,
            severity=dg.AssetCheckSeverity.WARN,
            description=_said_of_rows(reports, unasked),
            metadata={
                **about,
                "failed_rows": failed,
                **_since(reports),
                **{f"failed/{kind}": count for kind, count in by_type.items()},
            },
        ),
        dg.AssetCheckResult(
            asset_key=key,
            check_name=FAILURE_RATE,
            passed=not any(_is_too_bad(declaration, report) for report in reports),
            metadata={
                **about,
                "failure_rate": worst,
                "max_failure_rate": declaration.max_failure_rate,
            },
        ),
    ]


def _said_of_rows(
    reports: Sequence[PartitionReport], unasked: Sequence[PartitionReport]
) -> str | None:
    """What the numbers of the check do not say by themselves."""
    if not reports:
        return "Nothing has been asked yet."
    said: list[str] = []
    if unasked:
        names = ", ".join(str(report.partition) for report in unasked[:_IDS_SHOWN])
        of = f": {names}" if unasked[0].partition is not None else ""
        said.append(f"Not asked as a whole yet{of}.")
    if any(report.come_since is None for report in reports):
        said.append("The source could not be read: only rows that were asked are counted.")
    come = sum(report.come_since or 0 for report in reports if report.is_asked)
    if come:
        rows = counted(come, "row has", "rows have")
        said.append(f"{rows} come or changed since; materializing again asks them.")
    return " ".join(said) or None


def _since(reports: Sequence[PartitionReport]) -> Metadata:
    counts = [report.come_since for report in reports if report.come_since is not None]
    return {"rows_come_since": sum(counts)} if len(counts) == len(reports) > 0 else {}


def _sum_by_type(reports: Sequence[PartitionReport]) -> dict[str, int]:
    summed: dict[str, int] = {}
    for report in reports:
        for error_type, count in report.failed_by_type.items():
            summed[error_type] = summed.get(error_type, 0) + count
    return summed


def _is_too_bad(declaration: Declaration, report: PartitionReport) -> bool:
    return report.failure_rate > declaration.max_failure_rate


def _is_bad(declaration: Declaration, report: PartitionReport) -> bool:
    return report.left > 0 or _is_too_bad(declaration, report)


def is_complete(declaration: Declaration, reports: Sequence[PartitionReport]) -> bool:
    """Whether all was asked that there is to ask, and no partition would fail."""
    return bool(reports) and all(
        report.is_asked and report.come_since == 0 and not _is_too_bad(declaration, report)
        for report in reports
    )


def finish(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    declaration: Declaration,
    reports: Sequence[PartitionReport],
    *,
    deleted: Sequence[str] = (),
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Materialize the good partitions, all at once, and fail for the others.

    ``deleted`` are those whose key the asset has no more; Dagster then takes no result of the run,
    but each partition's materialization.

    Raises:
        dagster.Failure: A partition has failed, after the good ones were materialized.
    """
    checks = _selected(context, check_results(key, declaration, reports))
    bad = [report for report in reports if _is_bad(declaration, report)]
    if bad or deleted:
        yield from checks
        good = [report for report in reports if report not in bad]
        _finish_one_by_one(context, key, declaration, bad, good, deleted)
        return
    for report in reports:
        metadata = metadata_of(declaration, report)
        if report.partition is None:
            context.add_asset_metadata(metadata, asset_key=key)
        else:
            context.add_asset_metadata(metadata, asset_key=key, partition_key=report.partition)
    yield dg.MaterializeResult(asset_key=key)
    yield from checks


def refuse_left(declaration: Declaration, reports: Sequence[PartitionReport]) -> None:
    """Let a run fail that was to ask only some rows, and could not ask all of these for a cap.

    Raises:
        dagster.Failure: So it is.
    """
    bad = [report for report in reports if report.left]
    if bad:
        raise dg.Failure(
            _failure_message(declaration, bad, ""),
            metadata=_failure_metadata(declaration, bad),
            allow_retries=False,
        )


def _finish_one_by_one(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    declaration: Declaration,
    bad: Sequence[PartitionReport],
    good: Sequence[PartitionReport],
    deleted: Sequence[str],
) -> None:
    """Materialize the good partitions, of which some are ``deleted``, and fail for the bad ones.

    In a backfill that would never end after that, all of them fail.
    """
    must_end = BACKFILL_TAG in context.run.tags and not ends_stalled_backfills()
    materialized: Sequence[PartitionReport] = () if bad and must_end else good
    for report in materialized:
        metadata = metadata_of(declaration, report)
        context.log_event(
            dg.AssetMaterialization(key, partition=report.partition, metadata=metadata)
        )
    left_out = _left_out(context, key, materialized)
    if bad:
        raise dg.Failure(
            _failure_message(declaration, bad, _said_of(good, materialized, left_out)),
            metadata=_failure_metadata(declaration, bad),
            allow_retries=False,
        )
    message = f"{_deleted_message(declaration, deleted)}{left_out}"
    if left_out and must_end:
        raise dg.Failure(message, allow_retries=False)
    context.log.warning(message)


def _said_of(
    good: Sequence[PartitionReport], materialized: Sequence[PartitionReport], left_out: str
) -> str:
    """What becomes of the good partitions of a run that fails; nothing if there are none."""
    names = ", ".join(str(report.partition) for report in good)
    if materialized:
        return f"Materialized all the same: {names}.{left_out}"
    if good:
        return (
            f"Answered too, but not materialized: {names}. A backfill of Dagster {dg.__version__} "
            "would never end after a run of which some partitions are materialized and others "
            "fail. Launch these without those that failed: nothing is sent for them."
        )
    return ""


def _selected(
    context: dg.AssetExecutionContext, results: Sequence[dg.AssetCheckResult]
) -> list[dg.AssetCheckResult]:
    names = {check.name for check in context.selected_asset_check_keys}
    return [result for result in results if result.check_name in names]


def _left_out(
    context: dg.AssetExecutionContext, key: dg.AssetKey, good: Sequence[PartitionReport]
) -> str:
    """What becomes of the assets downstream, as sentences; nothing if none is in the run."""
    found = downstream_in_run(context, key)
    if not found or not good:
        return ""
    names = ", ".join(sorted(each.to_user_string() for each in found))
    return (
        f" Downstream in this run, and therefore not run for any partition: {names}. Materialize "
        "that for the partitions that are materialized here; nothing is sent for it."
    )


def downstream_in_run(
    context: dg.AssetExecutionContext, key: dg.AssetKey
) -> AbstractSet[dg.AssetKey]:
    """The assets of the run that are downstream of one of its assets."""
    graph = context.job_def.asset_layer.asset_graph
    pending, found = [key], set[dg.AssetKey]()
    while pending:
        children = graph.get(pending.pop()).child_keys & set(graph.executable_asset_keys)
        pending += children - found
        found |= children
    return found


def _deleted_message(declaration: Declaration, deleted: Sequence[str]) -> str:
    names = ", ".join(repr(key) for key in deleted)
    return (
        f"Deleted while their batches were out, and no partitions of the asset any more: {names}. "
        f"What was answered is in {declaration.answers}."
    )


def _failure_message(
    declaration: Declaration, bad: Sequence[PartitionReport], said_of_good: str
) -> str:
    lines = [line for report in bad for line in _of_partition(declaration, report)]
    if said_of_good:
        lines.append(said_of_good)
    again = ["rows that changed"]
    if any(report.left for report in bad):
        again.insert(0, "the rows that are left (on a budget of their own)")
    if any(report.failed for report in bad):
        again.insert(0, "the failures that may pass (`_retryable`)")
    lines.append(
        f"All answers are in {declaration.answers}, the failed rows with their reasons in "
        f"{declaration.failures}. Materializing again sends only {' and '.join(again)}; with "
        "`retry_failed: all` in the run config, all failed rows. `max_failure_rate` tolerates a "
        "larger share, `max_cost_usd` in the run config allows more."
    )
    return "\n".join(lines)


def _of_partition(declaration: Declaration, report: PartitionReport) -> Iterator[str]:
    name = f"partition {report.partition!r}" if report.partition is not None else "the asset"
    if report.left:
        yield f"{counted(report.left, 'row', 'rows')} of {name} were not sent: {report.capped}."
    if _is_too_bad(declaration, report):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.failed_by_type.items())
        yield (
            f"{report.failed:,} of {report.rows:,} rows of {name} failed "
            f"({report.failure_rate:.2%}, tolerated are {declaration.max_failure_rate:.2%}): "
            f"{kinds}."
        )


def _failure_metadata(
    declaration: Declaration, bad: Sequence[PartitionReport]
) -> Mapping[str, Any]:
    condition = " OR ".join(
        "_partition IS NULL"
        if report.partition is None
        else "_partition = '" + report.partition.replace("'", "''") + "'"
        for report in bad
    )
    sql = f"SELECT * FROM {declaration.failures.sql} WHERE {condition}"
    return {
        "failed_rows": sum(report.failed for report in bad),
        "rows_left_for_a_cap": sum(report.left for report in bad),
        "failures_sql": dg.MetadataValue.md(f"```sql\n{sql}\n```"),
        **{f"failed/{kind}": count for kind, count in _sum_by_type(bad).items()},
    }


def metadata_of(declaration: Declaration, report: PartitionReport) -> Metadata:
    """What a partition's materialization shows. Numbers are plotted over time."""
    usage = report.usage
    metadata: Metadata = {
        "dagster/row_count": report.answers_in_table,
        "dagster/column_schema": _column_schema(declaration, report),
        "rows": report.rows,
        "answered": report.answered,
        "failed": report.failed,
        "failure_rate": report.failure_rate,
        "requests_sent": report.sent,
        "requests_retried": report.retried,
        "anthropic.input_tokens": usage.input_tokens,
        "anthropic.output_tokens": usage.output_tokens,
        "anthropic.cache_read_tokens": usage.cache_read_tokens,
        "anthropic.cache_write_tokens": usage.cache_write_tokens,
        "waited_seconds": report.waited_seconds,
        # The asset's page would go on showing what was said while it waited.
        "waiting_for_batches": 0,
        "waiting_for_requests": 0,
        "batches": len(report.batch_ids),
        "batch_ids": ", ".join(report.batch_ids[:_IDS_SHOWN])
        + (" …" if len(report.batch_ids) > _IDS_SHOWN else ""),
        "dagster/table_name": str(declaration.answers),
        "failures_table": str(declaration.failures),
        **{f"failed/{kind}": count for kind, count in report.failed_by_type.items()},
    }
    if report.partition is not None:
        metadata["dagster/partition_row_count"] = report.answered
    if report.deduplicated:
        metadata["rows_deduplicated"] = report.deduplicated
    if report.kept_despite_failure:
        metadata["earlier_answers_kept"] = report.kept_despite_failure
    metadata |= _money(declaration, report)
    advice = list(advise(declaration, report.use))
    if advice:
        metadata["advice"] = dg.MetadataValue.md("\n".join(f"- {each}" for each in advice))
    if report.preview:
        metadata["preview"] = _preview(report.preview)
    return metadata


def _money(declaration: Declaration, report: PartitionReport) -> Metadata:
    """What the partition's requests cost, in USD, and how well they used what was paid for."""
    usage, use = report.usage, report.use
    shown: Metadata = {
        "max_tokens": declaration.max_tokens,
        "output_tokens_median": use.median_output_tokens,
        "output_tokens_p99": use.p99_output_tokens,
    }
    if declaration.shape.may_cache:
        shown["cache_hit_rate"] = usage.cache_hit_rate
    if usage.cost_usd is None:
        return {**shown, "cost_usd": _why_unknown(usage)}
    prices = declaration.batch_prices()
    standard = usage.standard_usd(prices.base.web_search if prices else Decimal(0))
    shown["cost_usd"] = float(usage.cost_usd)
    if standard is not None:
        shown["cost_usd_standard_price"] = float(standard)
        shown["saving_usd"] = float(standard - usage.cost_usd)
    if usage.answers:
        shown["cost_usd_per_1000_rows"] = float(1_000 * usage.cost_usd / usage.answers)
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
