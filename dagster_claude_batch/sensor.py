"""One tick: let held runs go whose batches have ended, and look after those nobody waits for.

It knows only what stands in the tags of runs and in its cursor; it never opens DuckDB.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import anthropic
import dagster as dg
import httpx2

from dagster_claude_batch import held_run, holding
from dagster_claude_batch.batch_asset import batch_asset_keys
from dagster_claude_batch.dagster_internals import PARTITION_NAME_TAG, WILL_RETRY_TAG
from dagster_claude_batch.doubt import UNSEEN
from dagster_claude_batch.errors import ClaudeBatchError
from dagster_claude_batch.held_run import HeldRun
from dagster_claude_batch.landing_job import LEFT_TAG, build_landing_job, op_name_of
from dagster_claude_batch.resource import ClaudeBatchResource
from dagster_claude_batch.workbench import Waiting

OLD_POOL: Final = timedelta(minutes=10)
"""A pool limit comes before its run: only one that stays without a run was left behind."""

STUCK: Final = timedelta(minutes=5)
"""A held run that is still not enqueued after this long was left behind by a crash."""

RELEASES_PER_TICK: Final = 200
RETRIES_PER_TICK: Final = 20
OBSERVATIONS_PER_TICK: Final = 100
_API_TIMEOUT_SECONDS: Final = 20.0

_LOCATION_TAG: Final = "dagster/code_location"
_QUEUED: Final = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


@dataclass
class Cursor:
    """What one tick tells the next; moments in seconds since 1970.

    ``held`` are the held runs last seen unfinished, ``ended`` runs that ended with something out,
    and when that was noticed. ``unseen`` are batches that the API does not show although it shows
    others, and since when. ``land_at`` is when to ask for a landing run, ``landing`` the one
    that was asked for, and ``landing_for`` the runs that it was told of. ``progress`` is how
    many tenths of its batches had ended when that was last said of a held run.
    """

    last_look: float = 0.0
    held: list[str] = field(default_factory=list[str])
    ended: dict[str, float] = field(default_factory=dict[str, float])
    pools: dict[str, float] = field(default_factory=dict[str, float])
    land_at: float | None = None
    landing: str | None = None
    unseen: dict[str, float] = field(default_factory=dict[str, float])
    landing_for: list[str] = field(default_factory=list[str])
    progress: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def load(cls, text: str | None) -> "Cursor":
        """Read a cursor; one that cannot be read is started anew, for nothing depends on it."""
        try:
            return cls(**json.loads(text or "{}"))
        except (TypeError, ValueError):
            return cls()

    def dump(self) -> str:
        """Write the cursor."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Look:
    """What the API showed: which batches have ended, and how many requests are in the queue.

    ``unseen`` are batches that it does not show, although it shows others of ours.
    """

    ended: frozenset[str] = frozenset()
    in_queue: int = 0
    unseen: frozenset[str] = frozenset()


def may_go(held: HeldRun, look: Look, now: datetime, window: int) -> bool:
    """Whether a held run whose maker has ended has something to do."""
    if not held.waits:
        return True  # its maker ended before it had paid for anything
    return any(_is_due(wait, look, now, window) for wait in held.waits) or all(
        wait.batch_ids and look.ended.issuperset(wait.batch_ids) for wait in held.waits
    )


def _is_due(wait: Waiting, look: Look, now: datetime, window: int) -> bool:
    if wait.not_before is not None and now >= wait.not_before:
        return True
    if wait.batch_ids and (wait.unsent or wait.any_end):
        return not look.ended.isdisjoint(wait.batch_ids)
    if not wait.unsent or wait.send_after is not None:
        return False
    return look.in_queue + wait.needs <= window


@dataclass
class Tick:
    """One tick of one sensor."""

    context: dg.SensorEvaluationContext
    claude: ClaudeBatchResource
    claude_resource: str
    landing_job: str
    grace: timedelta
    cursor: Cursor
    now: datetime

    @property
    def instance(self) -> dg.DagsterInstance:
        """The Dagster instance."""
        return self.context.instance

    def run(self) -> dg.SensorResult:
        """Do what is due, and say what is waited for."""
        runs, elsewhere = self._held_runs()
        self._enqueue_left_behind(runs)
        waiting = self._waiting(runs)
        problem, look = self._look(waiting)
        released = self._release(waiting, look)
        self._bring_back()
        self._notice_ended(runs)
        self._sweep_pools(runs)
        requests = self._landing_requests()
        left = [pair for pair in waiting if pair[0].run_id not in released]
        progress = self._progress(left, look)
        summary = self._summary([each for each, _ in left], released, problem)
        summary += self._may_have_been_renamed(elsewhere)
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else dg.SkipReason(summary),
            cursor=self.cursor.dump(),
            asset_events=progress,
        )

    def _location_tags(self) -> dict[str, str]:
        origin = self.context.code_location_origin
        return {} if origin is None else {_LOCATION_TAG: origin.location_name}

    def _tags(self) -> dict[str, str]:
        return {**self._location_tags(), held_run.HELD_TAG: self.claude_resource}

    def _held_runs(self) -> tuple[dict[str, dg.DagsterRun], list[dg.DagsterRun]]:
        """The held runs of this code location, and those of others."""
        tags = {held_run.HELD_TAG: self.claude_resource}
        found = held_run.in_queue(self.instance, tags, _QUEUED)
        mine = self._location_tags().items()
        runs = {run.run_id: run for run in found if mine <= run.tags.items()}
        return runs, [run for run in found if run.run_id not in runs]

    def _may_have_been_renamed(self, elsewhere: Sequence[dg.DagsterRun]) -> str:
        """Say what else waits for assets of ours: Dagster runs it where it was launched, or not.

        Another location may define the same assets by right, so nothing is done about it.
        """
        repository = self.context.repository_def
        if repository is None or not elsewhere:
            return ""
        ours = batch_asset_keys(repository)
        left = [run for run in elsewhere if ours.intersection(run.asset_selection or ())]
        if not left:
            return ""
        names = sorted({repr(run.tags.get(_LOCATION_TAG, "")) for run in left})
        waits = held_run.counted(len(left), "run waits", "runs wait")
        return (
            f" {waits} for assets that are defined here, launched in {', '.join(names)}: if this "
            "code location was renamed, cancel and materialize again; nothing is sent twice."
        )

    def _enqueue_left_behind(self, runs: Mapping[str, dg.DagsterRun]) -> None:
        """Enqueue runs whose maker was killed between creating and enqueueing them."""
        created = [run for run in runs.values() if run.status == dg.DagsterRunStatus.NOT_STARTED]
        makers = self._runs(held_run.read(run).maker_run_id for run in created)
        for run in created:
            maker = makers.get(held_run.read(run).maker_run_id)
            if (maker is not None and maker.is_finished) or self._is_stuck(run):
                holding.enqueue(self.instance, run)

    def _is_stuck(self, run: dg.DagsterRun) -> bool:
        record = self.instance.get_run_record_by_id(run.run_id)
        return record is not None and self._real_now() - record.create_timestamp > STUCK

    def _waiting(self, runs: Mapping[str, dg.DagsterRun]) -> list[tuple[HeldRun, dg.DagsterRun]]:
        """The held runs that have not been let go; those that have been, once more."""
        waiting: list[tuple[HeldRun, dg.DagsterRun]] = []
        for run in runs.values():
            held = held_run.read(run)
            if held.state == held_run.RELEASED:
                held_run.forget_pool(self.instance, held.pool)
            elif run.status == dg.DagsterRunStatus.QUEUED:
                waiting.append((held, run))
        return waiting

    def _look(self, waiting: Sequence[tuple[HeldRun, dg.DagsterRun]]) -> tuple[str | None, Look]:
        """Ask the API, if a look is due. A batch that it does not show is a reason to wait."""
        waits = [wait for held, _ in waiting for wait in held.waits]
        wanted = {batch_id for wait in waits for batch_id in wait.batch_ids}
        for_room = any(wait.unsent and not wait.batch_ids for wait in waits)
        nothing = Look(in_queue=self.claude.max_in_flight_requests)
        if not (wanted or for_room) or self.now < self._next_look([held for held, _ in waiting]):
            return None, nothing
        self.cursor.last_look = self.now.timestamp()
        try:
            return None, self.with_unseen(look_at(self.claude, wanted, for_room=for_room))
        except (anthropic.AnthropicError, httpx2.HTTPError, ClaudeBatchError) as error:
            return f"The API could not be asked ({type(error).__name__}: {error}).", nothing

    def with_unseen(self, look: Look) -> Look:
        """Let a run look after batches that have not been seen for long, once in that time."""
        now = self.now.timestamp()
        since = {batch_id: self.cursor.unseen.get(batch_id, now) for batch_id in look.unseen}
        long = {batch_id for batch_id in since if now - since[batch_id] > UNSEEN.total_seconds()}
        self.cursor.unseen = {**since, **dict.fromkeys(long, now)}
        return replace(look, ended=look.ended | long)

    def _next_look(self, waiting: Sequence[HeldRun]) -> datetime:
        """When the youngest batch is to be looked at again, and with it all others."""
        begun = [wait.since for held in waiting for wait in held.waits if wait.since]
        age = self.now - max(begun) if begun else timedelta()
        pause = held_run.pause_after(age, self._poll_interval)
        return datetime.fromtimestamp(self.cursor.last_look, UTC) + pause

    def _release(self, waiting: Sequence[tuple[HeldRun, dg.DagsterRun]], look: Look) -> set[str]:
        """Let go what has something to do, never before the run that made it has ended."""
        window = self.claude.max_in_flight_requests
        due = [pair for pair in waiting if may_go(pair[0], look, self.now, window)]
        makers = self._records([held.maker_run_id for held, _ in due])
        ready = [
            (held, run, maker)
            for held, run in due
            if self._is_over(held, maker := makers.get(held.maker_run_id))
        ]
        released: set[str] = set()
        for held, run, maker in ready[:RELEASES_PER_TICK]:
            released.add(run.run_id)
            if (
                not held.waits
                and maker
                and maker.dagster_run.status == dg.DagsterRunStatus.CANCELED
            ):
                # Who terminated the run while it was sending did not mean its successor to go on.
                self.instance.report_run_canceled(run, message="The run before this was cancelled.")
            else:
                held_run.release(self.instance, run)
        if any(held.waits and held.run_id not in released for held, _ in due):
            self.cursor.last_look = 0.0
        return released

    def _is_over(self, held: HeldRun, maker: dg.RunRecord | None) -> bool:
        """Whether the run that made a held run has ended, and a pause after failures is over."""
        if maker is None:
            return True
        if not maker.dagster_run.is_finished:
            return False
        pause = held_run.pause_after_failures(held.fruitless, self._poll_interval)
        over = (maker.end_time or 0.0) + pause.total_seconds()
        return bool(held.waits) or self._real_now().timestamp() >= over

    @property
    def _poll_interval(self) -> timedelta:
        return timedelta(seconds=self.claude.poll_interval_seconds)

    def _records(self, run_ids: Iterable[str]) -> dict[str, dg.RunRecord]:
        wanted = sorted(set(run_ids))
        if not wanted:
            return {}
        found = self.instance.get_run_records(dg.RunsFilter(run_ids=wanted))
        return {record.dagster_run.run_id: record for record in found}

    def _bring_back(self) -> None:
        """Make another run for each that died while it collected, or never began to.

        One that fails by itself makes its successor itself. Where one after the other has failed,
        none is made, and the landing job lands what they have left.
        """
        tags = {**self._tags(), held_run.STATE_TAG: held_run.RELEASED}
        failed = dg.RunsFilter(tags=tags, statuses=[dg.DagsterRunStatus.FAILURE])
        for run in self.instance.get_runs(failed, limit=RETRIES_PER_TICK):
            held_id = holding.held_run_id(run.run_id)
            if not self.instance.has_run(held_id) and not self._is_brought_back(run):
                continue
            said = f"again by run {held_id[:8]}"
            held_run.mark(self.instance, run.run_id, held_run.SETTLED, said)

    def _is_brought_back(self, run: dg.DagsterRun) -> bool:
        repository = self.context.repository_def
        if repository is None or run.tags.get(WILL_RETRY_TAG) == "true":
            return False
        batch_assets = (run.asset_selection or frozenset()) & batch_asset_keys(repository)
        if not batch_assets:
            return False  # they are not declared any more
        try:
            held_id = holding.make(
                self.instance,
                run,
                asset_graph=repository.asset_graph,
                batch_assets=batch_assets,
                claude_resource=self.claude_resource,
                has_failed=True,
            )
        except RuntimeError:
            return False
        held_run.say_again(self.instance, held_id, run, self._poll_interval)
        return True

    def _runs(self, run_ids: Iterable[str]) -> dict[str, dg.DagsterRun]:
        wanted = sorted(set(run_ids))
        if not wanted:
            return {}
        return {r.run_id: r for r in self.instance.get_runs(dg.RunsFilter(run_ids=wanted))}

    def _notice_ended(self, runs: Mapping[str, dg.DagsterRun]) -> None:
        """Note runs that ended, or were deleted, before their batches had been collected.

        The landing job marks them as settled.
        """
        gone = {run_id for run_id in self.cursor.held if run_id not in runs}
        found = self._runs(gone)
        at_work = {run_id for run_id, run in found.items() if not run.is_finished}
        deleted = gone.difference(found)
        is_landing = self.cursor.landing is not None
        self.cursor.held = sorted({*runs, *at_work, *(deleted if is_landing else ())})
        if is_landing:
            return
        now = self._real_now().timestamp()
        for run_id in [*deleted, *self._ended_with_something_out()]:
            self.cursor.ended.setdefault(run_id, now)

    def _ended_with_something_out(self) -> list[str]:
        statuses = [dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE]
        states = [held_run.WAITING, held_run.RELEASED, held_run.IN_RUN]
        ended: list[str] = []
        for tag in (held_run.HELD_TAG, held_run.WAITER_TAG):
            tags = {**self._location_tags(), tag: self.claude_resource, held_run.STATE_TAG: states}
            found = self.instance.get_runs(dg.RunsFilter(tags=tags, statuses=statuses))
            ended += [run.run_id for run in found]
        return ended

    def _sweep_pools(self, runs: Mapping[str, dg.DagsterRun]) -> None:
        """Delete pool limits that belong to no held run any more, once they are surely old."""
        if not self.instance.event_log_storage.supports_global_concurrency_limits:
            return
        limits = self.instance.event_log_storage.get_pool_limits()
        ours = {each.name for each in limits if each.name.startswith(held_run.POOL_PREFIX)}
        used = {held_run.read(run).pool for run in runs.values()}
        now = self._real_now().timestamp()
        seen = {pool: self.cursor.pools.get(pool, now) for pool in ours - used}
        old = [pool for pool, since in seen.items() if now - since > OLD_POOL.total_seconds()]
        if old and not self._others_held():
            for pool in old:
                held_run.forget_pool(self.instance, pool)
                del seen[pool]
        self.cursor.pools = seen

    def _others_held(self) -> bool:
        """Whether other code locations or resources have runs in held pools of their own."""
        runs = self.instance.get_runs(dg.RunsFilter(statuses=list(_QUEUED)))
        mine = self._tags().items()
        return any(held_run.HELD_TAG in run.tags and not mine <= run.tags.items() for run in runs)

    def _landing_requests(self) -> list[dg.RunRequest]:
        """Ask for a run that lands what nobody waits for, and cancels what was given up."""
        now = self._real_now().timestamp()
        if self._is_landing():
            return []
        ripe = [
            run_id
            for run_id, since in self.cursor.ended.items()
            if now - since > self.grace.total_seconds()
        ]
        if self.cursor.land_at is None and held_run.watchers(self.instance, self.claude_resource):
            self.cursor.land_at = now + UNSEEN.total_seconds()
        if not ripe and (self.cursor.land_at is None or now < self.cursor.land_at):
            return []
        self.cursor.ended = {
            run_id: since for run_id, since in self.cursor.ended.items() if run_id not in ripe
        }
        self.cursor.land_at = None
        self.cursor.landing_for = ripe
        self.cursor.landing = f"{self.landing_job}:{now:.3f}"
        config = {"ended_runs": ripe}
        return [
            dg.RunRequest(
                run_key=self.cursor.landing,
                run_config={"ops": {op_name_of(self.landing_job): {"config": config}}},
            )
        ]

    def _is_landing(self) -> bool:
        """Whether a landing run that was asked for is still at work; note what it left."""
        if self.cursor.landing is None:
            return False
        tags = {"dagster/run_key": self.cursor.landing}
        runs = self.instance.get_runs(dg.RunsFilter(tags=tags), limit=1)
        if runs and not runs[0].is_finished:
            return True
        left = int(runs[0].tags.get(LEFT_TAG, "1")) if runs else 1
        if not runs or runs[0].status != dg.DagsterRunStatus.SUCCESS:
            # What it was told of is told again, one grace later.
            again = dict.fromkeys(self.cursor.landing_for, self._real_now().timestamp())
            self.cursor.ended = {**again, **self.cursor.ended}
        self.cursor.landing, self.cursor.landing_for = None, []
        if left:
            pause = timedelta(seconds=2 * self.claude.poll_interval_seconds)
            self.cursor.land_at = (self._real_now() + pause).timestamp()
        return False

    def _real_now(self) -> datetime:
        """Dagster's time, by which runs are dated; `now` is the API's."""
        return datetime.now(UTC)

    def _progress(
        self, waiting: Sequence[tuple[HeldRun, dg.DagsterRun]], look: Look
    ) -> list[dg.AssetObservation]:
        """Say how many batches have ended of those that a run waits for, at each tenth of them."""
        before, self.cursor.progress = self.cursor.progress, {}
        said: list[dg.AssetObservation] = []
        for held, run in waiting:
            ended = len(look.ended & held.batch_ids)
            tenths = max(10 * ended // max(1, len(held.batch_ids)), before.get(held.run_id, 0))
            if tenths:
                self.cursor.progress[held.run_id] = tenths
            if tenths > before.get(held.run_id, 0) and len(said) < OBSERVATIONS_PER_TICK:
                said += progress_of(held, run, ended)
        return said

    def _summary(self, left: Sequence[HeldRun], released: set[str], problem: str | None) -> str:
        parts = [problem] if problem else []
        if released:
            parts.append(f"Let {held_run.counted(len(released), 'run', 'runs')} go.")
        parts.append(describe(left, self.now, self._next_look(left)))
        return " ".join(parts)


def look_at(claude: ClaudeBatchResource, wanted: set[str], *, for_room: bool) -> Look:
    """Ask for the state of batches with one `list` call per 1,000 of them."""
    found = claude.look(sorted(wanted), timeout_seconds=_API_TIMEOUT_SECONDS) if wanted else {}
    ended = {batch_id for batch_id, each in found.items() if each.processing_status == "ended"}
    in_queue = claude.max_in_flight_requests
    if for_room:
        in_queue = claude.requests_in_queue(timeout_seconds=_API_TIMEOUT_SECONDS)
    unseen = wanted.difference(found) if found else ()
    return Look(frozenset(ended), in_queue, frozenset(unseen))


def progress_of(held: HeldRun, run: dg.DagsterRun, ended: int) -> list[dg.AssetObservation]:
    """How far the batches of a held run are, for each of its assets that waits."""
    return [
        dg.AssetObservation(
            key,
            partition=run.tags.get(PARTITION_NAME_TAG),
            description=f"{ended:,} of {len(held.batch_ids):,} Claude batches have ended.",
            metadata={
                "batches_ended": ended,
                "waiting_for_batches": len(held.batch_ids) - ended,
                "collecting_run": dg.MetadataValue.dagster_run(held.run_id),
            },
        )
        for key in sorted(run.asset_selection or ())
        if held_run.name_of(key) in held.assets
    ]


def describe(waiting: Sequence[HeldRun], now: datetime, next_look: datetime) -> str:
    """What is waited for, in one sentence."""
    if not waiting:
        return "Nothing is waiting for batches."
    batches = {batch_id for held in waiting for batch_id in held.batch_ids}
    since = [wait.since for held in waiting for wait in held.waits if wait.since]
    runs = held_run.counted(len(waiting), "run", "runs")
    partitions = held_run.counted(
        sum(held.partitions for held in waiting), "partition", "partitions"
    )
    verb = "waits" if len(waiting) == 1 else "wait"
    parts = [
        f"{runs} with {partitions} {verb} for {held_run.counted(len(batches), 'batch', 'batches')}"
    ]
    if since:
        parts.append(f"the oldest out for {_duration(now - min(since))}")
    again = [held for held in waiting if held.fruitless and not held.waits]
    if again:
        parts.append(f"{held_run.counted(len(again), 'of them tries', 'of them try')} again")
    if next_look > now:
        parts.append(f"next look in {_duration(next_look - now)}")
    return ", ".join(parts) + "."


def _duration(length: timedelta) -> str:
    minutes, seconds = divmod(int(length.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def build_claude_batch_sensor(
    name: str,
    *,
    claude_resource: str = "claude_batch",
    minimum_interval_seconds: int = 30,
    cancel_after_seconds: float = 600.0,
) -> dg.SensorDefinition:
    """Build the sensor for one Claude resource; a code location needs one for each of them.

    It is running by default. Its landing job, which lands what no run waits for any more, comes
    with it. ``cancel_after_seconds`` is how long batches outlive the last run that waited for
    them: within that time, materializing again joins them.
    """
    landing_job = f"{name}_landing"

    def tick(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        claude: Any = getattr(context.resources, claude_resource)
        return Tick(
            context,
            claude,
            claude_resource,
            landing_job,
            timedelta(seconds=cancel_after_seconds),
            Cursor.load(context.cursor),
            claude.now(),
        ).run()

    return dg.SensorDefinition(
        name=name,
        evaluation_fn=tick,
        job=build_landing_job(landing_job, claude_resource=claude_resource),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={claude_resource},
        tags={held_run.SENSOR_RESOURCE_TAG: claude_resource},
        description=(
            "Lets runs go that wait for Claude batches, as soon as their results are ready. "
            "It must be running: without it, nobody collects."
        ),
    )


claude_batch_sensor: Final = build_claude_batch_sensor("claude_batch_sensor")
"""The sensor for the resource ``claude_batch``: put it into the `sensors` of your definitions."""
