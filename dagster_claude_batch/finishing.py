"""The end of a run: which partitions are materialized, which fail, and what is said of them."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import dagster as dg

from dagster_claude_batch.dagster_internals import BACKFILL_TAG, ends_stalled_backfills
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.held_run import counted
from dagster_claude_batch.metadata import (
    IDS_SHOWN,
    Metadata,
    failure_metadata,
    metadata_of,
    sum_by_type,
)
from dagster_claude_batch.report import PartitionReport

EVERY_ROW_ANSWERED: Final = "every_row_answered"
FAILURE_RATE: Final = "failure_rate"


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
    by_type = sum_by_type(reports)
    partitions = ", ".join(str(report.partition) for report in reports[:IDS_SHOWN])
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
        names = ", ".join(str(report.partition) for report in unasked[:IDS_SHOWN])
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
            metadata=failure_metadata(declaration, bad),
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
            metadata=failure_metadata(declaration, bad),
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
