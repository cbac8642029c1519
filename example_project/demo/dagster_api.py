"""Dagster's GraphQL API, through the very calls that its UI makes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

from example_project.demo import graphql_documents as documents
from example_project.demo.partition_statuses import PartitionStatus, partition_statuses

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
    partition: str | None
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


class DagsterRefusedError(Exception):
    """Dagster answered a GraphQL operation with something other than success."""


class DagsterApi:
    """One code location of a Dagster webserver.

    Assets are named by their key, with ``/`` between its parts.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx2.Client(base_url=url, timeout=30, trust_env=False)
        self._location: dict[str, str] = {}

    def close(self) -> None:
        """Close the connections to the webserver."""
        self._http.close()

    def is_ready(self) -> bool:
        """Whether the code location is loaded and every daemon that it needs is healthy.

        Raises:
            DagsterRefusedError: The code location does not load.
        """
        try:
            return self._location_is_loaded() and self._daemons_are_healthy()
        except httpx2.TransportError:
            return False

    def materialize(
        self,
        *assets: str,
        partition: str | None = None,
        partition_range: tuple[str, str] | None = None,
        run_config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Launch one run, as "Materialize" does; return its id.

        A range (first and last key) is what "Pass partition ranges to single run" launches.
        """
        launch_tags = {**(tags or {}), "dagster/from_ui": "true"}
        if partition is not None:
            launch_tags["dagster/partition"] = partition
        if partition_range is not None:
            launch_tags["dagster/asset_partition_range_start"] = partition_range[0]
            launch_tags["dagster/asset_partition_range_end"] = partition_range[1]
        params = {
            "selector": {
                **self._location,
                "pipelineName": "__ASSET_JOB",
                "assetSelection": _keys(assets),
            },
            "mode": "default",
            "runConfigData": json.dumps(run_config or {}),
            "executionMetadata": {"tags": _tags(launch_tags)},
        }
        return self._call(documents.LAUNCH_RUN, params=params)["run"]["runId"]

    def launch_backfill(
        self,
        assets: Sequence[str],
        partitions: Sequence[str],
        *,
        run_config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Launch a backfill, as "Launch backfill" does; return its id."""
        params = {
            "assetSelection": _keys(assets),
            "partitionNames": list(partitions),
            "fromFailure": False,
            "tags": _tags({**(tags or {}), "dagster/from_ui": "true"}),
            "runConfigData": json.dumps(run_config or {}),
        }
        return self._call(documents.LAUNCH_BACKFILL, params=params)["backfillId"]

    def cancel_backfill(self, backfill_id: str) -> None:
        """Cancel a backfill and the runs it has launched."""
        self._call(documents.CANCEL_BACKFILL, backfillId=backfill_id)

    def backfill(self, backfill_id: str) -> Backfill:
        """Return a backfill as its page shows it."""
        found = self._call(documents.BACKFILL, backfillId=backfill_id)
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

    def partition_statuses(self, asset: str) -> dict[str, PartitionStatus]:
        """Return what the asset's partition bar shows, by partition key."""
        node = self._call(documents.PARTITIONS, assetKey=_key(asset))
        return partition_statuses(node["partitionKeysByDimension"], node["assetPartitionStatuses"])

    def asset_status(self, asset: str) -> PartitionStatus:
        """Return what the asset graph shows of an asset without partitions."""
        (latest,) = self._call(documents.LATEST, assetKeys=_keys([asset]))
        run, materialization = latest["latestRun"], latest["latestMaterialization"]
        if latest["unstartedRunIds"] or latest["inProgressRunIds"]:
            return "materializing"
        if (
            run
            and run["status"] == "FAILURE"
            and run["runId"] != (materialization or {}).get("runId")
        ):
            return "failed"
        return "materialized" if materialization else "missing"

    def asset_materializations(self, asset: str, *, limit: int = 100) -> list[AssetEvent]:
        """Return the materializations of an asset, newest first."""
        return self._asset_events(asset, "assetMaterializations", limit)

    def asset_observations(self, asset: str, *, limit: int = 100) -> list[AssetEvent]:
        """Return the observations of an asset, newest first."""
        return self._asset_events(asset, "assetObservations", limit)

    def check_executions(self, asset: str, check: str, *, limit: int = 100) -> list[CheckExecution]:
        """Return the executions of an asset check, newest first."""
        executions = self._call(
            documents.CHECK_EXECUTIONS, assetKey=_key(asset), checkName=check, limit=limit
        )
        return [_check_execution(execution) for execution in executions]

    def runs(
        self,
        *,
        run_ids: Sequence[str] = (),
        statuses: Sequence[RunStatus] = (),
        tags: Mapping[str, str] | None = None,
        limit: int = 1_000,
    ) -> list[Run]:
        """Return the runs that match every filter given, newest first."""
        run_filter: dict[str, Any] = {"tags": _tags(tags or {})}
        if run_ids:
            run_filter["runIds"] = list(run_ids)
        if statuses:
            run_filter["statuses"] = list(statuses)
        found = self._call(documents.RUNS, filter=run_filter, limit=limit)
        return [_run(run) for run in found["results"]]

    def run(self, run_id: str) -> Run:
        """Return one run.

        Raises:
            LookupError: There is no such run.
        """
        for run in self.runs(run_ids=[run_id]):
            return run
        raise LookupError(run_id)

    def run_messages(self, run_id: str) -> list[str]:
        """Return a run's event log, with the errors of its failed steps."""
        messages: list[str] = []
        cursor, more = None, True
        while more:
            page = self._call(documents.RUN_ERRORS, runId=run_id, cursor=cursor)
            cursor, more = page["cursor"], page["hasMore"]
            messages += [_message(event) for event in page["events"]]
        return messages

    def terminate(self, run_id: str, *, force: bool = False) -> None:
        """Terminate a run; with ``force``, mark it as canceled without waiting for it."""
        policy = "MARK_AS_CANCELED_IMMEDIATELY" if force else "SAFE_TERMINATE"
        self._call(documents.TERMINATE_RUN, runId=run_id, policy=policy)

    def delete_run(self, run_id: str) -> None:
        """Delete a run and its events; a run in progress goes on unseen."""
        self._call(documents.DELETE_RUN, runId=run_id)

    def reexecute(
        self, run_id: str, *, strategy: Literal["ALL_STEPS", "FROM_FAILURE"] = "ALL_STEPS"
    ) -> str:
        """Launch a run again, as "Re-execute all" or "from failure" does; return the new id."""
        params = {"parentRunId": run_id, "strategy": strategy}
        return self._call(documents.REEXECUTE_RUN, params=params)["run"]["runId"]

    def sensor_state(self, sensor: str) -> Literal["RUNNING", "STOPPED"]:
        """Return whether a sensor is on."""
        return self._sensor(sensor)["status"]

    def start_sensor(self, sensor: str) -> None:
        """Switch a sensor on."""
        self._call(documents.START_SENSOR, selector=self._sensor_selector(sensor))

    def stop_sensor(self, sensor: str) -> None:
        """Switch a sensor off."""
        self._call(documents.STOP_SENSOR, id=self._sensor(sensor)["id"])

    def ticks(self, sensor: str, *, limit: int = 100) -> list[Tick]:
        """Return a sensor's ticks, newest first."""
        return [_tick(tick) for tick in self._sensor(sensor, limit=limit)["ticks"]]

    def start_schedule(self, schedule: str) -> str:
        """Switch a schedule on; return the id by which it is stopped."""
        selector = {**self._location, "scheduleName": schedule}
        return self._call(documents.START_SCHEDULE, selector=selector)["scheduleState"]["id"]

    def stop_schedule(self, schedule_id: str) -> None:
        """Switch a schedule off."""
        self._call(documents.STOP_SCHEDULE, id=schedule_id)

    def add_partition(self, partitions_def: str, key: str) -> None:
        """Add a key to dynamic partitions."""
        self._call(documents.ADD_PARTITION, repository=self._location, name=partitions_def, key=key)

    def delete_partition(self, partitions_def: str, key: str) -> None:
        """Delete a key of dynamic partitions; its materializations stay."""
        self._call(
            documents.DELETE_PARTITIONS, repository=self._location, name=partitions_def, keys=[key]
        )

    def reload_location(self) -> None:
        """Load the definitions again, as "Reload definitions" does.

        Raises:
            DagsterRefusedError: The code location does not load.
        """
        name = self._location["repositoryLocationName"]
        entry = self._call(documents.RELOAD_LOCATION, name=name)
        _raise_load_error(entry["locationOrLoadError"])

    def _location_is_loaded(self) -> bool:
        entries = self._call(documents.WORKSPACE)["locationEntries"]
        if not entries or not entries[0]["locationOrLoadError"]:
            return False
        loaded = entries[0]["locationOrLoadError"]
        _raise_load_error(loaded)
        self._location = {
            "repositoryLocationName": entries[0]["name"],
            "repositoryName": loaded["repositories"][0]["name"],
        }
        return True

    def _daemons_are_healthy(self) -> bool:
        daemons = self._call(documents.DAEMONS)["daemonHealth"]["allDaemonStatuses"]
        required = [daemon for daemon in daemons if daemon["required"]]
        return bool(required) and all(daemon["healthy"] for daemon in required)

    def _asset_events(self, asset: str, kind: str, limit: int) -> list[AssetEvent]:
        found = self._call(documents.ASSET_EVENTS, assetKey=_key(asset), limit=limit)
        return [_asset_event(event) for event in found.get(kind, [])]

    def _sensor(self, sensor: str, *, limit: int = 1) -> dict[str, Any]:
        selector = self._sensor_selector(sensor)
        return self._call(documents.SENSOR, selector=selector, limit=limit)["sensorState"]

    def _sensor_selector(self, sensor: str) -> dict[str, str]:
        return {**self._location, "sensorName": sensor}

    def _call(self, document: str, **variables: object) -> Any:  # noqa: ANN401 - JSON, as the document asks for it
        """Send an operation that has one root field, and return that field."""
        sent = {"query": document, "variables": variables}
        answer = self._http.post("/graphql", json=sent).json()
        if answer.get("errors"):
            raise DagsterRefusedError("; ".join(error["message"] for error in answer["errors"]))
        (field,) = answer["data"].values()
        if isinstance(field, dict) and _is_refusal(field["__typename"]):
            raise DagsterRefusedError(f"{field['__typename']}: {_reason(field)}")
        return field


def _is_refusal(typename: str) -> bool:
    """Tell Dagster's error types, of which a never materialized asset is none."""
    if typename == "AssetNotFoundError":
        return False
    return typename.endswith(("Error", "Failure", "Invalid", "Conflict"))


def _reason(field: dict[str, Any]) -> str:
    reasons = [error["message"] for error in field.get("errors", [])]
    return "; ".join([*reasons, field.get("message", "")]).strip("; ")


def _raise_load_error(loaded: dict[str, Any]) -> None:
    if loaded["__typename"] == "PythonError":
        why = "\n".join(error["message"] for error in [loaded, *loaded["causes"]])
        raise DagsterRefusedError(f"the code location does not load: {why}")


def _key(asset: str) -> dict[str, list[str]]:
    return {"path": asset.split("/")}


def _keys(assets: Sequence[str]) -> list[dict[str, list[str]]]:
    return [_key(asset) for asset in assets]


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _count(assets: Sequence[Mapping[str, Any]], partitioned: str, unpartitioned: str) -> int:
    return sum(int(asset.get(partitioned, asset.get(unpartitioned, 0))) for asset in assets)


def _run(run: Mapping[str, Any]) -> Run:
    return Run(
        run_id=run["runId"],
        status=run["status"],
        created=run["creationTime"],
        job=run["jobName"],
        tags={tag["key"]: tag["value"] for tag in run["tags"]},
        assets=["/".join(key["path"]) for key in run["assetSelection"] or []],
    )


def _asset_event(event: Mapping[str, Any]) -> AssetEvent:
    return AssetEvent(
        run_id=event["runId"],
        partition=event["partition"],
        timestamp=int(event["timestamp"]),
        metadata=_metadata(event["metadataEntries"]),
    )


def _check_execution(execution: Mapping[str, Any]) -> CheckExecution:
    evaluation = execution["evaluation"] or {}
    return CheckExecution(
        run_id=execution["runId"],
        status=execution["status"],
        partition=execution["partition"],
        severity=evaluation.get("severity"),
        description=evaluation.get("description"),
        metadata=_metadata(evaluation.get("metadataEntries", [])),
    )


def _tick(tick: Mapping[str, Any]) -> Tick:
    return Tick(
        timestamp=tick["timestamp"],
        status=tick["status"],
        skip_reason=tick["skipReason"],
        cursor=tick["cursor"],
        run_ids=tick["runIds"],
        error=tick["error"] and tick["error"]["message"],
    )


def _message(event: Mapping[str, Any]) -> str:
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
