"""Dagster's GraphQL API, through the very calls that its UI makes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx2

from example_project.demo import graphql_documents as documents
from example_project.demo.dagster_shown import (
    AssetEvent,
    Backfill,
    CheckExecution,
    Run,
    RunStatus,
    Tick,
    as_asset_event,
    as_backfill,
    as_check_execution,
    as_message,
    as_run,
    as_tick,
)
from example_project.demo.partition_statuses import PartitionStatus, partition_statuses


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
        selected = {"pipelineName": "__ASSET_JOB", "assetSelection": _keys(assets)}
        return self._launch(selected, run_config, launch_tags)

    def launch_job(self, job: str, *, run_config: Mapping[str, Any] | None = None) -> str:
        """Launch a job, as its launchpad does; return the run's id."""
        return self._launch({"pipelineName": job}, run_config, {"dagster/from_ui": "true"})

    def _launch(
        self,
        selected: Mapping[str, Any],
        run_config: Mapping[str, Any] | None,
        tags: Mapping[str, str],
    ) -> str:
        params = {
            "selector": {**self._location, **selected},
            "mode": "default",
            "runConfigData": json.dumps(run_config or {}),
            "executionMetadata": {"tags": _tags(tags)},
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
        return as_backfill(self._call(documents.BACKFILL, backfillId=backfill_id))

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
        return [as_check_execution(execution) for execution in executions]

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
        return [as_run(run) for run in found["results"]]

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
            messages += [as_message(event) for event in page["events"]]
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
        return [as_tick(tick) for tick in self._sensor(sensor, limit=limit)["ticks"]]

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
        return [as_asset_event(event) for event in found.get(kind, [])]

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
