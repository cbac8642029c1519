"""The held run: a queued Dagster run that waits to collect, without a process or a run slot.

Dagster has no first-class way to suspend a run. A copy of the run stays in the queue because its
steps name a pool of their own, whose limit is 0 until the sensor deletes it.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypeVar

import dagster as dg

from dagster_claude_batch.dagster_internals import PARENT_RUN_ID_TAG, PRIORITY_TAG, RETRY_NUMBER_TAG
from dagster_claude_batch.workbench import Waiting

T = TypeVar("T")

POOL_PREFIX: Final = "waiting_for_claude_batch/"

HELD_TAG: Final = ".dagster/claude_batch.held"
"""On every held run, for ever; its value is the key of the Claude resource."""
STATE_TAG: Final = ".dagster/claude_batch.state"
MAKER_TAG: Final = ".dagster/claude_batch.maker"
POOL_TAG: Final = ".dagster/claude_batch.pool"
OLD_PRIORITY_TAG: Final = ".dagster/claude_batch.priority"
FRUITLESS_TAG: Final = ".dagster/claude_batch.fruitless"
"""How many runs before this one, in a chain, ended without having collected anything."""
FRUITFUL_TAG: Final = ".dagster/claude_batch.fruitful"
"""On a held run that has collected something; its value is the run's id, for tags are copied."""
POOLS_TAG: Final = ".dagster/claude_batch.pools"
"""The user's pools that all first steps of a held run are in, as a JSON list."""
READY_TAG: Final = ".dagster/claude_batch.ready"
"""On a held run whose batches have ended, but whose pools had no free slot."""
PARTITIONS_TAG: Final = ".dagster/claude_batch.partitions"
"""How many partitions a held run is about."""
_ATTACHED_TAG: Final = ".dagster/claude_batch.attached."
_SETTLED_TAG: Final = ".dagster/claude_batch.settled."
_WAIT_TAG: Final = ".dagster/claude_batch.wait."
_BATCHES_TAG: Final = ".dagster/claude_batch.batches."
SHORT_TAG: Final = "claude_batch"
LONG_TAG: Final = "claude_batch_details"
OURS: Final = ".dagster/claude_batch."
"""How the names of all hidden tags of ours begin."""

WAITER_TAG: Final = ".dagster/claude_batch.waiter"
"""On a run that waits itself; its value is the key of the Claude resource."""

GAVE_UP_TAG: Final = ".dagster/claude_batch.gave_up"
"""On a run that has sent something anew whose batch may still appear; value as above."""

RunState: TypeAlias = Literal["waiting", "released", "in_reserve", "in_run", "settled"]
"""The value of `STATE_TAG`.

``waiting`` is a held run, ``released`` one that may collect, ``in_reserve`` one that never begins
(`reserve`), ``in_run`` a run that waits itself.
``settled`` has nothing out any more that somebody would have to look after.
"""

WAITING: Final[RunState] = "waiting"
RELEASED: Final[RunState] = "released"
IN_RESERVE: Final[RunState] = "in_reserve"
IN_RUN: Final[RunState] = "in_run"
SETTLED: Final[RunState] = "settled"

SENSOR_RESOURCE_TAG: Final = "dagster_claude_batch/claude_resource"
"""On a sensor definition: the key of the Claude resource whose held runs it lets go."""

OLD_AGE: Final = timedelta(hours=10)
"""From this age of a batch on, looks are ten times as far apart as at first."""

LAST_IN_QUEUE: Final = "-1000"
"""Dagster counts a held run against tag limits before it looks at pools: so it goes last."""

_IDS_IN_A_TAG: Final = 50
"""Tag values are indexed, and PostgreSQL refuses index rows above about 2,700 bytes."""


@dataclass(frozen=True)
class HeldRun:
    """A held run, as far as its tags tell; ``waits`` is empty until its maker has sent.

    ``assets`` are the names (`name_of`) of the assets that wait, in the order of ``waits``.
    ``pools`` are the user's: it can begin where one of them has a free slot, or if there is none.
    With ``is_ready`` the API need not be asked any more.
    """

    run_id: str
    maker_run_id: str
    pool: str
    state: str
    status: dg.DagsterRunStatus
    waits: tuple[Waiting, ...] = field(default=())
    fruitless: int = 0
    partitions: int = 1
    assets: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    is_ready: bool = False

    @property
    def batch_ids(self) -> set[str]:
        """All batches that the run waits for."""
        return {batch_id for wait in self.waits for batch_id in wait.batch_ids}


def pool_of(run_id: str) -> str:
    """The pool that keeps a held run in the queue."""
    return f"{POOL_PREFIX}{run_id[:8]}"


def attached_tag(asset: dg.AssetKey) -> str:
    """On a run that is to collect for this asset; its value is the run for which it does."""
    return f"{_ATTACHED_TAG}{name_of(asset)}"


def attached_tags(run: dg.DagsterRun) -> dict[str, str]:
    """Those of `attached_tag` that a run has."""
    return {key: value for key, value in run.tags.items() if key.startswith(_ATTACHED_TAG)}


def materialized_in(instance: dg.DagsterInstance, run_id: str) -> set[dg.AssetKey]:
    """What a run has materialized so far."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    made = [event.asset_materialization for event in events]
    return {each.asset_key for each in made if each is not None}


def name_of(asset: dg.AssetKey) -> str:
    """A short name for use in tags."""
    return uuid.uuid5(uuid.NAMESPACE_URL, asset.to_string()).hex[:12]


def describe(
    instance: dg.DagsterInstance,
    held_id: str,
    asset: dg.AssetKey,
    waiting: Waiting,
    *,
    partitions: int = 1,
) -> None:
    """Write what is waited for into the held run's tags, for the sensor and for people."""
    name = name_of(asset)
    pages = [
        waiting.batch_ids[start : start + _IDS_IN_A_TAG]
        for start in range(0, len(waiting.batch_ids), _IDS_IN_A_TAG)
    ]
    wait = {
        "requests": waiting.requests,
        "unsent": waiting.unsent,
        "needs": waiting.needs,
        "since": _stamp(waiting.since),
        "not_before": _stamp(waiting.not_before),
        "send_after": _stamp(waiting.send_after),
        "any_end": waiting.any_end,
        "in_vain": waiting.in_vain,
    }
    instance.add_run_tags(
        held_id,
        {
            **{f"{_BATCHES_TAG}{name}.{n}": ",".join(page) for n, page in enumerate(pages)},
            f"{_WAIT_TAG}{name}": json.dumps(wait),
            PARTITIONS_TAG: str(partitions),
            SHORT_TAG: _short(waiting),
            LONG_TAG: _long(waiting),
        },
    )


def _stamp(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _short(waiting: Waiting) -> str:
    """At most 22 characters, of which the run's page shows all."""
    if waiting.since is None:
        return "waiting to send"
    return f"waiting since {waiting.since:%H:%M} UTC"


def _long(waiting: Waiting) -> str:
    """What the sensor does comes first, for the UI cuts long tags."""
    if waiting.is_for_room:
        unsent = counted(waiting.unsent, "chunk is", "chunks are")
        latest = f", at {waiting.not_before:%Y-%m-%d %H:%M} UTC at the latest"
        return (
            "The sensor starts this run when fewer requests are out (max_in_flight_requests)"
            f"{latest if waiting.not_before else ''}: {unsent} not sent yet. To cancel, terminate "
            "this run."
        )
    if waiting.is_in_doubt and waiting.not_before:
        requests = counted(waiting.requests, "request", "requests")
        return (
            f"The sensor starts this run at {waiting.not_before:%Y-%m-%d %H:%M} UTC, to look for a "
            f"batch of {requests} whose creation nobody saw; nothing of it is sent again before. "
            "To cancel, terminate this run."
        )
    batches = counted(len(waiting.batch_ids), "batch", "batches")
    parts = [f"{batches} with {counted(waiting.requests, 'request', 'requests')} out"]
    if waiting.unsent:
        parts.append(f"{counted(waiting.unsent, 'chunk', 'chunks')} not sent yet")
    latest = waiting.not_before or (waiting.since and waiting.since + _LONGEST_BATCH)
    if latest:
        parts.append(f"at {latest:%Y-%m-%d %H:%M} UTC at the latest")
    said = f"The sensor starts this run when they have ended: {', '.join(parts)}."
    return f"{said} To cancel them, terminate this run."


_LONGEST_BATCH: Final = timedelta(hours=24)
"""After this long the API ends a batch, whatever of it has been processed."""


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun, for people."""
    return f"{number:,} {one if number == 1 else many}"


def read(run: dg.DagsterRun) -> HeldRun:
    """Read a held run's tags."""
    tags = run.tags
    names = [key.removeprefix(_WAIT_TAG) for key in tags if key.startswith(_WAIT_TAG)]
    return HeldRun(
        run.run_id,
        tags.get(MAKER_TAG, ""),
        tags.get(POOL_TAG, pool_of(run.run_id)),
        tags.get(STATE_TAG, WAITING),
        run.status,
        tuple(_read_wait(tags, name) for name in names),
        _number(tags.get(FRUITLESS_TAG)),
        _number(tags.get(PARTITIONS_TAG), 1),
        tuple(names),
        tuple(str(pool) for pool in _loaded(tags.get(POOLS_TAG, "[]"), list[Any]())),
        READY_TAG in tags,
    )


def found_no_room(
    held: HeldRun, asset: dg.AssetKey, waiting: Waiting, now: datetime, poll_interval: timedelta
) -> Waiting:
    """What is waited for by a run that came for room; if it found none, after a growing pause."""
    before = dict(zip(held.assets, held.waits, strict=True)).get(name_of(asset))
    if before is None or not (before.is_for_room and waiting.is_for_room):
        return waiting
    in_vain = before.in_vain + 1
    until = now + pause_after_failures(in_vain, poll_interval)
    return replace(waiting, in_vain=in_vain, send_after=max(until, waiting.send_after or until))


def _read_wait(tags: Mapping[str, str], name: str) -> Waiting:
    """Read what another version may have written; what names nothing to wait for is due at once."""
    wait = _loaded(tags[f"{_WAIT_TAG}{name}"], dict[str, Any]())
    pages = [ids for key, ids in tags.items() if key.startswith(f"{_BATCHES_TAG}{name}.")]
    batch_ids = tuple(batch_id for ids in pages for batch_id in ids.split(",") if batch_id)
    return Waiting(
        batch_ids,
        _number(wait.get("requests")),
        _number(wait.get("unsent")),
        _number(wait.get("needs")),
        _moment(wait.get("since")),
        _moment(wait.get("not_before")) or (None if batch_ids else _LONG_AGO),
        _moment(wait.get("send_after")),
        bool(wait.get("any_end")),
        _number(wait.get("in_vain")),
    )


def _loaded(text: str, otherwise: T) -> T:
    """What a tag holds, if it is of the same type as ``otherwise``."""
    try:
        found = json.loads(text)
    except ValueError:
        return otherwise
    return found if isinstance(found, type(otherwise)) else otherwise


def _number(value: object, otherwise: int = 0) -> int:
    try:
        return int(str(value))
    except ValueError:
        return otherwise


def _moment(stamp: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


_LONG_AGO: Final = datetime.fromtimestamp(0, UTC)


def is_copy(run: dg.DagsterRun) -> bool:
    """Whether Dagster has launched a held run anew, tags and all: nothing holds that one."""
    return HELD_TAG in run.tags and PARENT_RUN_ID_TAG in run.tags


def take_for_ordinary(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Take from a copy of a run that was waiting what made that one wait; repeating it is free."""
    if run.tags.get(STATE_TAG) not in (WAITING, IN_RESERVE):
        return
    # Dagster's own retry collects, as the run that it repeats; a person asks anew.
    state = RELEASED if RETRY_NUMBER_TAG in run.tags else SETTLED
    priority = {PRIORITY_TAG: run.tags.get(OLD_PRIORITY_TAG, "0")}
    mark(instance, run.run_id, state, "launched again")
    instance.add_run_tags(run.run_id, {**priority, LONG_TAG: "This run does not wait."})


def release(instance: dg.DagsterInstance, run: dg.DagsterRun, short: str, *sentences: str) -> None:
    """Let the queue have a held run, and say why. Repeating it changes nothing.

    ``short`` has at most 22 characters, as all that the run's page shows of such a tag.
    """
    instance.add_run_tags(
        run.run_id,
        {
            STATE_TAG: RELEASED,
            PRIORITY_TAG: run.tags.get(OLD_PRIORITY_TAG, "0"),
            SHORT_TAG: short,
            LONG_TAG: " ".join(sentences),
        },
    )
    forget_pool(instance, run.tags.get(POOL_TAG, pool_of(run.run_id)))


def make_ready(instance: dg.DagsterInstance, held: HeldRun) -> None:
    """Note that a held run may go as soon as one of its pools has a free slot."""
    pools = " or ".join(repr(pool) for pool in held.pools)
    tags = {
        READY_TAG: "1",
        SHORT_TAG: "waiting for a pool",
        LONG_TAG: f"This run has something to do; it starts when pool {pools} has a free slot.",
    }
    instance.add_run_tags(held.run_id, tags)


def mark(
    instance: dg.DagsterInstance, run_id: str, state: RunState | None, said: str, **tags: str
) -> None:
    """Note how a run stands; ``said`` is for people."""
    states = {STATE_TAG: state} if state is not None else {}
    instance.add_run_tags(run_id, {**states, SHORT_TAG: said, **tags})


def settle(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    asset: dg.AssetKey,
    assets: Iterable[dg.AssetKey],
    said: str,
) -> None:
    """Note that nothing of an asset is left to this run; ``assets`` are all that it works on."""
    settled = {f"{_SETTLED_TAG}{name_of(asset)}": said}
    instance.add_run_tags(run.run_id, settled)
    now = instance.get_run_by_id(run.run_id)
    if now is not None and all(f"{_SETTLED_TAG}{name_of(each)}" in now.tags for each in assets):
        mark(instance, run.run_id, SETTLED, said)


def say_again(
    instance: dg.DagsterInstance, held_id: str, failed: dg.DagsterRun, poll_interval: timedelta
) -> datetime:
    """Say on a held run that follows a failed one when it is let go; that moment."""
    held = instance.get_run_by_id(held_id)
    fruitless = read(held).fruitless if held is not None else 1
    moment = datetime.now(UTC) + pause_after_failures(fruitless, poll_interval)
    tags = {
        SHORT_TAG: f"again at {moment:%H:%M} UTC",
        LONG_TAG: f"Run {failed.run_id[:8]} failed while something was out. The sensor starts this "
        f"run at {moment:%H:%M} UTC, to try again; {counted(fruitless, 'run', 'runs')} in a row "
        "failed.",
    }
    instance.add_run_tags(held_id, tags)
    return moment


def forget_pool(instance: dg.DagsterInstance, pool: str) -> None:
    """Delete the limit of a held run's pool."""
    instance.event_log_storage.delete_concurrency_limit(pool)


def is_alive(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run is at work, or going to be.

    A held run whose maker was cancelled before it had sent anything is not: the sensor will
    cancel it too.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished or run.status == dg.DagsterRunStatus.CANCELING:
        return False
    if is_copy(run) or run.tags.get(STATE_TAG) != WAITING or read(run).waits:
        return True
    maker = instance.get_run_by_id(run.tags.get(MAKER_TAG, ""))
    return maker is None or maker.status not in _CANCELLED


_CANCELLED: Final = (dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.CANCELING)


def is_cancelled(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether somebody has asked for the end of a run."""
    run = instance.get_run_by_id(run_id)
    return run is None or run.status in _CANCELLED


def were_given_up(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> bool:
    """Whether somebody cancelled the last of these runs, and no other is alive.

    A run that failed is not given up: who materializes again goes on where it stopped. Nor is
    one that this instance does not know, for it may be another's.
    """
    if not run_ids or any(is_alive(instance, run_id) for run_id in run_ids):
        return False
    last = instance.get_run_by_id(run_ids[-1])
    return last is not None and (not last.is_finished or last.status in _CANCELLED)


def in_queue(
    instance: dg.DagsterInstance, tags: Mapping[str, str], statuses: Sequence[dg.DagsterRunStatus]
) -> list[dg.DagsterRun]:
    """Held runs with these tags and statuses, oldest first."""
    found = instance.get_runs(dg.RunsFilter(tags=dict(tags), statuses=list(statuses)))
    return list(reversed(list(found)))


_PAUSES: Final = (0, 1, 5, 15, 30, 60)
"""Poll intervals between the end of a run that came to nothing and the next one's beginning."""


def pause_after_failures(fruitless: int, poll_interval: timedelta) -> timedelta:
    """How long to wait after so many runs in a row that came to nothing."""
    return poll_interval * _PAUSES[min(fruitless, len(_PAUSES) - 1)]


def pause_after(age: timedelta, poll_interval: timedelta) -> timedelta:
    """How long to wait before the next look at batches of this age.

    One interval for the first hour, then longer and longer, up to ten intervals.
    """
    hours = max(0.0, (age - timedelta(hours=1)) / (OLD_AGE - timedelta(hours=1)))
    return poll_interval * min(10.0, 1.0 + 9.0 * hours)
