"""What held runs need of Dagster beyond its public interface, and whether this Dagster has it.

Nothing here is imported from Dagster's inside before it is used: a version that has moved
something can still load the definitions, and its runs wait by themselves.
"""

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Names of tags: Dagster writes them into its storage, so they do not change between versions.
PRIORITY_TAG: Final = "dagster/priority"
PARTITION_NAME_TAG: Final = "dagster/partition"
PARENT_RUN_ID_TAG: Final = "dagster/parent_run_id"
RETRY_NUMBER_TAG: Final = "dagster/retry_number"
WILL_RETRY_TAG: Final = "dagster/will_retry"
AUTO_RETRY_TAG: Final = "dagster/auto_retry_run_id"
LOCATION_TAG: Final = "dagster/code_location"
BACKFILL_TAG: Final = "dagster/backfill"
CONCURRENCY_TAG: Final = "dagster/concurrency_key"
"""A step's pool, in the words of older definitions."""

NOT_COPIED: Final = frozenset(
    {
        PRIORITY_TAG,
        PARENT_RUN_ID_TAG,
        RETRY_NUMBER_TAG,
        WILL_RETRY_TAG,
        AUTO_RETRY_TAG,
        ".dagster/grpc_info",
        "dagster/is_resume_retry",
        "dagster/root_run_id",
        "dagster/failure_reason",
        "dagster/run_key",
        ".dagster/run_worker",
        "dagster/sensor_name",
        "dagster/tick",
    }
)
"""Tags that tell of one run how it came about, or what became of it: no other run has them."""

CREATE_RUN_PARAMETERS: Final = frozenset(
    {
        "job_name",
        "run_id",
        "run_config",
        "status",
        "tags",
        "root_run_id",
        "parent_run_id",
        "step_keys_to_execute",
        "execution_plan_snapshot",
        "job_snapshot",
        "parent_job_snapshot",
        "asset_selection",
        "asset_check_selection",
        "resolved_op_selection",
        "op_selection",
        "remote_job_origin",
        "job_code_origin",
        "asset_graph",
    }
)
"""What `DagsterInstance.create_run` is called with."""

_EVENTS: Final = "dagster._core.events"
_ERRORS: Final = "dagster._core.errors"
_COORDINATOR: Final = "dagster._core.run_coordinator.queued_run_coordinator"
_BACKFILL: Final = "dagster._core.execution.asset_backfill"
_PLAN: Final = "dagster._core.snap.execution_plan_snapshot"
_RUN: Final = "dagster._core.storage.dagster_run"

_NAMES: Final = (
    (_EVENTS, "DagsterEvent", ("job_enqueue",)),
    (_ERRORS, "DagsterRunAlreadyExists", ()),
    (_COORDINATOR, "QueuedRunCoordinator", ()),
    (_PLAN, "ExecutionPlanSnapshot", ("_replace", "asset_selection", "steps")),
    (_PLAN, "ExecutionStepSnap", ("_replace", "outputs", "pool")),
    (_RUN, "DagsterRun", ("remote_job_origin", "run_op_concurrency")),
)
"""Modules, what is in them, and what of that."""

_OF_INSTANCE: Final = (
    "add_run_tags",
    "all_logs",
    "create_run",
    "delete_run",
    "event_log_storage",
    "get_concurrency_config",
    "get_execution_plan_snapshot",
    "get_historical_job",
    "get_instigator_state",
    "report_dagster_event",
    "report_run_canceled",
    "run_coordinator",
)

_OF_STORAGE: Final = (
    "delete_concurrency_limit",
    "get_concurrency_info",
    "get_pool_limits",
    "set_concurrency_slots",
    "supports_global_concurrency_limits",
)


def missing(instance: dg.DagsterInstance) -> str | None:
    """What this Dagster lacks of all that held runs need; None if it has everything."""
    return (
        _first_missing_name()
        or _first_missing(instance, "DagsterInstance", _OF_INSTANCE)
        or _first_missing(instance.event_log_storage, "EventLogStorage", _OF_STORAGE)
        or _other_parameters(instance.create_run)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # not public
    )


def lacks(missing: str) -> str:
    """A reason for not holding runs: something is missing."""
    return f"Dagster {dg.__version__} has no {missing}, which runs that wait in the queue need"


def _first_missing_name() -> str | None:
    for module, name, attributes in _NAMES:
        try:
            found = _inside(module, name)
        except (ImportError, AttributeError):
            return f"{module}.{name}"
        if lacking := _first_missing(found, name, attributes):
            return lacking
    return None


def _first_missing(owner: object, called: str, names: "Iterable[str]") -> str | None:
    found = next((name for name in names if not hasattr(owner, name)), None)
    return f"{called}.{found}" if found else None


def _other_parameters(create_run: Any) -> str | None:  # noqa: ANN401  # any callable
    parameters: Mapping[str, Any] = signature(create_run).parameters
    needed = {name for name, each in parameters.items() if each.default is each.empty}
    if parameters.keys() >= CREATE_RUN_PARAMETERS and needed <= CREATE_RUN_PARAMETERS:
        return None
    differing = sorted(CREATE_RUN_PARAMETERS - parameters.keys() or needed - CREATE_RUN_PARAMETERS)
    return f"the parameters of DagsterInstance.create_run as they were ({differing[0]})"


def _inside(module: str, name: str) -> Any:  # noqa: ANN401  # whatever stands there
    return getattr(import_module(module), name)


def event_class() -> Any:  # noqa: ANN401  # dagster._core.events.DagsterEvent
    """The class of Dagster's events."""
    return _inside(_EVENTS, "DagsterEvent")


def already_exists_error() -> type[Exception]:
    """What `create_run` raises for an id that there is."""
    return _inside(_ERRORS, "DagsterRunAlreadyExists")


def location_tags(run: dg.DagsterRun) -> dict[str, str]:
    """The tag that tells a run's code location, which older versions do not set themselves."""
    origin = run.remote_job_origin
    if origin is None:
        return {}
    return {LOCATION_TAG: origin.repository_origin.code_location_origin.location_name}


def ends_stalled_backfills() -> bool:
    """Whether a backfill ends if its runs have ended without materializing all that it asked for.

    Elsewhere it waits for ever for partitions of a failed run which has materialized others of the
    same asset, and for what a run that succeeded has skipped.
    """
    try:
        _inside(_BACKFILL, "_backfill_is_stalled")
    except (ImportError, AttributeError):
        return False
    return True


def queues_runs(instance: dg.DagsterInstance) -> bool:
    """Whether runs wait in a queue, which looks at their pools, until a daemon starts them."""
    return isinstance(instance.run_coordinator, _inside(_COORDINATOR, "QueuedRunCoordinator"))
