"""What Dagster's UI shows, read from the answers of its GraphQL API."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

BackfillStatus = Literal[
    "REQUESTED",
    "COMPLETED",
    "FAILED",
    "CANCELED",
    "CANCELING",
    "COMPLETED_SUCCESS",
    "COMPLETED_FAILED",
    "FAILING",
]
RunStatus = Literal[
    "QUEUED",
    "NOT_STARTED",
    "MANAGED",
    "STARTING",
    "STARTED",
    "SUSPENDED",
    "SUCCESS",
    "FAILURE",
    "CANCELING",
    "CANCELED",
]
IN_PROGRESS: tuple[RunStatus, ...] = ("STARTING", "STARTED", "CANCELING")
ENDED: tuple[RunStatus, ...] = ("SUCCESS", "FAILURE", "CANCELED")


@dataclass(frozen=True)
class Run:
    """A run as the Runs page shows it; ``created`` in seconds since the epoch.

    ``assets`` are those it was restricted to; none of a ``job`` that runs as a whole.
    """

    run_id: str
    status: RunStatus
    created: float
    job: str
    tags: Mapping[str, str]
    assets: Sequence[str]

    @property
    def partition(self) -> str | None:
        """Partition key, or the first one of a range."""
        return self.tags.get("dagster/partition") or self.tags.get(
            "dagster/asset_partition_range_start"
        )

    @property
    def is_in_progress(self) -> bool:
        """Whether it holds a process and a slot of the run queue."""
        return self.status in IN_PROGRESS

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED


@dataclass(frozen=True)
class Backfill:
    """A backfill; its counts are partitions, summed over its assets."""

    backfill_id: str
    status: BackfillStatus
    targeted: int
    in_progress: int
    materialized: int
    failed: int
    error: str | None

    @property
    def is_ended(self) -> bool:
        """Whether Dagster will do nothing more for it."""
        return self.status not in ("REQUESTED", "CANCELING", "FAILING")


@dataclass(frozen=True)
class AssetEvent:
    """A materialization or an observation; ``timestamp`` in milliseconds since the epoch."""

    run_id: str
    partition: str | None
    timestamp: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class CheckExecution:
    """One execution of an asset check."""

    run_id: str
    status: str
    severity: str | None
    description: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Tick:
    """One evaluation of a sensor; ``timestamp`` in seconds since the epoch."""

    timestamp: float
    status: Literal["STARTED", "SKIPPED", "SUCCESS", "FAILURE"]
    skip_reason: str | None
    cursor: str | None
    run_ids: Sequence[str]
    error: str | None


def as_backfill(found: Mapping[str, Any]) -> Backfill:
    """Read a backfill, and sum its counts over its assets."""
    counts = (found["assetBackfillData"] or {}).get("assetBackfillStatuses", [])
    return Backfill(
        backfill_id=found["id"],
        status=found["status"],
        targeted=sum(int(asset.get("numPartitionsTargeted", 1)) for asset in counts),
        in_progress=_count(counts, "numPartitionsInProgress", "inProgress"),
        materialized=_count(counts, "numPartitionsMaterialized", "materialized"),
        failed=_count(counts, "numPartitionsFailed", "failed"),
        error=found["error"] and found["error"]["message"],
    )


def as_run(run: Mapping[str, Any]) -> Run:
    """Read a run."""
    return Run(
        run_id=run["runId"],
        status=run["status"],
        created=run["creationTime"],
        job=run["jobName"],
        tags={tag["key"]: tag["value"] for tag in run["tags"]},
        assets=["/".join(key["path"]) for key in run["assetSelection"] or []],
    )


def as_asset_event(event: Mapping[str, Any]) -> AssetEvent:
    """Read a materialization or an observation."""
    return AssetEvent(
        run_id=event["runId"],
        partition=event["partition"],
        timestamp=int(event["timestamp"]),
        metadata=_metadata(event["metadataEntries"]),
    )


def as_check_execution(execution: Mapping[str, Any]) -> CheckExecution:
    """Read the execution of a check."""
    evaluation = execution["evaluation"] or {}
    return CheckExecution(
        run_id=execution["runId"],
        status=execution["status"],
        severity=evaluation.get("severity"),
        description=evaluation.get("description"),
        metadata=_metadata(evaluation.get("metadataEntries", [])),
    )


def as_tick(tick: Mapping[str, Any]) -> Tick:
    """Read a sensor's tick."""
    return Tick(
        timestamp=tick["timestamp"],
        status=tick["status"],
        skip_reason=tick["skipReason"],
        cursor=tick["cursor"],
        run_ids=tick["runIds"],
        error=tick["error"] and tick["error"]["message"],
    )


def as_message(event: Mapping[str, Any]) -> str:
    """Read an event of a run, with the errors that it tells of."""
    error = event.get("error") or {}
    causes = [cause["message"] for cause in error.get("causes", [])]
    return "\n".join(filter(None, [event.get("message"), error.get("message"), *causes]))


def _metadata(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {entry["label"]: _metadata_value(entry) for entry in entries}


def _metadata_value(entry: Mapping[str, Any]) -> object:
    """Turn a metadata entry into the Python value it was made from; None for exotic kinds."""
    match entry["__typename"]:
        case "IntMetadataEntry":
            value: object = int(entry["intRepr"])
        case "FloatMetadataEntry":
            value = entry["floatValue"]
        case "BoolMetadataEntry":
            value = entry["boolValue"]
        case "JsonMetadataEntry":
            value = json.loads(entry["jsonString"])
        case "TimestampMetadataEntry":
            value = entry["timestamp"]
        case "TableMetadataEntry":
            value = [json.loads(record) for record in entry["table"]["records"]]
        case _:
            value = entry.get("text")
    return value


def _count(assets: Sequence[Mapping[str, Any]], partitioned: str, unpartitioned: str) -> int:
    return sum(int(asset.get(partitioned, asset.get(unpartitioned, 0))) for asset in assets)
