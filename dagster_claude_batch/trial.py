"""Runs that are no materialization: with `limit` some rows are asked, in a `dry_run` none."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import dagster as dg

from dagster_claude_batch.config import ClaudeBatchConfig
from dagster_claude_batch.dagster_internals import BACKFILL_TAG
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import RequestsFileError, TrialInBackfillError
from dagster_claude_batch.estimate import Estimate
from dagster_claude_batch.held_run import counted
from dagster_claude_batch.rehearsal import Rehearsal
from dagster_claude_batch.report import PartitionReport

_CHARACTERS: Final = 1_000


def refuse_in_backfill(
    run: dg.DagsterRun, declaration: Declaration, config: ClaudeBatchConfig
) -> None:
    """Make sure that nobody waits for partitions that will not be materialized.

    Raises:
        TrialInBackfillError: A backfill does.
    """
    asked = [name for name in ("limit", "dry_run") if getattr(config, name)]
    if asked and BACKFILL_TAG in run.tags:
        raise TrialInBackfillError(declaration.asset, asked[0])


def refuse_file_of_requests(declaration: Declaration, config: ClaudeBatchConfig) -> None:
    """Make sure that nobody pays for requests that were only to be looked at.

    Raises:
        RequestsFileError: They were to be written, and it is no dry run.
    """
    path = config.requests_path
    if path is not None and not config.dry_run:
        raise RequestsFileError(declaration.asset, path, "that needs `dry_run`")


def describe_rehearsal(
    key: dg.AssetKey, declaration: Declaration, rehearsal: Rehearsal
) -> Iterator[dg.AssetObservation]:
    """What would be sent, for each partition of a dry run."""
    unchecked = (
        f" The model could not be checked, for the API gave no answer ({rehearsal.unchecked})."
        if rehearsal.unchecked
        else ""
    )
    for part, estimate in zip(rehearsal.partitions, rehearsal.estimates, strict=True):
        rows = counted(part.rows, "row", "rows")
        yield dg.AssetObservation(
            key,
            partition=part.partition,
            description=f"Dry run: {rows} would be sent. Nothing was sent, and nothing is changed."
            f"{unchecked}",
            metadata={
                "dry_run": True,
                "rows_to_send": part.rows,
                "rows_that_cannot_be_asked": part.invalid,
                "requests_to_send": part.requests,
                "request_bytes": part.bytes,
                **estimated(estimate),
                "rows_to_send_in_run": rehearsal.rows,
                "batches_of_run": rehearsal.chunks,
                "requests": dg.MetadataValue.md(_requests(declaration, part.examples)),
            },
        )


def estimated(estimate: Estimate) -> dict[str, dg.MetadataValue[Any] | int]:
    """Tokens and money, as numbers; a price that nobody knows is said to be so."""
    shown: dict[str, dg.MetadataValue[Any] | int] = {
        "estimated_input_tokens": estimate.input_tokens,
        "estimated_by": dg.MetadataValue.text(estimate.by),
    }
    amounts = {
        "estimated_cost_usd_at_most": estimate.most_usd,
        "estimated_standard_price_usd_at_most": estimate.standard_most_usd,
        "estimated_cost_usd": estimate.likely_usd,
    }
    if estimate.most_usd is None:
        return {**shown, "estimated_cost_usd_at_most": dg.MetadataValue.text("no known price")}
    return shown | {
        name: dg.MetadataValue.float(float(usd)) for name, usd in amounts.items() if usd is not None
    }


def _requests(declaration: Declaration, examples: Sequence[tuple[str, str]]) -> str:
    """The first requests, as they would be sent."""
    parts: list[str] = []
    for row_key, params in examples:
        text = json.dumps(_readable(json.loads(params)), ensure_ascii=False, indent=2)
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        parts.append(f"{', '.join(declaration.row_key)} = {row_key}\n\n{indented}")
    return "\n\n".join(parts) or "None: each row has its answer."


def _readable(value: object) -> object:
    """The same with texts cut that nobody would read to their end, those of pictures above all."""
    match value:
        case dict():
            return {k: _readable(v) for k, v in cast("dict[str, object]", value).items()}
        case list():
            return [_readable(each) for each in cast("list[object]", value)]
        case str() if len(value) > _CHARACTERS:
            return f"{value[:_CHARACTERS]}… ({len(value):,} characters)"
        case _:
            return value


def describe_limited(
    key: dg.AssetKey, declaration: Declaration, reports: Sequence[PartitionReport], limit: int
) -> Iterator[dg.AssetObservation]:
    """How each partition stands of which some rows were asked."""
    for report in reports:
        sent = counted(report.sent, "request", "requests")
        yield dg.AssetObservation(
            key,
            partition=report.partition,
            description=f"Limited to {counted(limit, 'row', 'rows')} of the run: {sent} sent. The "
            f"answers are in {declaration.answers}; not materialized, for the rest was not asked. "
            "Materializing without the limit sends the rest only.",
            metadata={
                "limit": limit,
                "answered": report.answered,
                "failed": report.failed,
                "requests_sent": report.sent,
                "waiting_for_batches": 0,
                "waiting_for_requests": 0,
                **{f"failed/{kind}": count for kind, count in report.failed_by_type.items()},
            },
        )
