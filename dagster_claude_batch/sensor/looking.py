"""Looking at batches: whether to ask the API, and what its answer means for who waits.

The API is asked for batches only: how much room there is, stands in tags (`sensor.room`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from dagster_claude_batch import held_run
from dagster_claude_batch.doubt import UNSEEN
from dagster_claude_batch.errors import NoCredentialsError
from dagster_claude_batch.held_run import HeldRun
from dagster_claude_batch.resource import UNANSWERED, ClaudeBatchResource
from dagster_claude_batch.sensor.scene import Scene
from dagster_claude_batch.workbench import Waiting


@dataclass(frozen=True)
class Look:
    """What the API showed: which batches have ended.

    ``unseen`` are batches that it does not show, although it shows others of ours.
    """

    ended: frozenset[str] = frozenset()
    unseen: frozenset[str] = frozenset()


def look(scene: Scene, waiting: Sequence[HeldRun]) -> tuple[str | None, Look]:
    """Ask the API, if a look is due. A batch that it does not show is a reason to wait."""
    wanted = {batch_id for held in waiting if not held.is_ready for batch_id in held.batch_ids}
    if not wanted or scene.now < next_look(scene, waiting):
        return None, Look()
    scene.cursor.last_look = scene.now.timestamp()
    problem, shown = look_at(scene.claude, wanted, scene.seconds_to_ask())
    return problem, with_unseen(scene, shown)


def with_unseen(scene: Scene, look: Look) -> Look:
    """Let a run look after batches that have not been seen for long, once in that time."""
    now = scene.now.timestamp()
    since = {batch_id: scene.cursor.unseen.get(batch_id, now) for batch_id in look.unseen}
    long = {batch_id for batch_id in since if now - since[batch_id] > UNSEEN.total_seconds()}
    scene.cursor.unseen = {**since, **dict.fromkeys(long, now)}
    return replace(look, ended=look.ended | long)


def next_look(scene: Scene, waiting: Sequence[HeldRun]) -> datetime:
    """When the youngest batch is to be looked at again, and with it all others."""
    begun = [wait.since for held in waiting for wait in held.waits if wait.since]
    age = scene.now - max(begun) if begun else timedelta()
    pause = held_run.pause_after(age, scene.poll_interval)
    return datetime.fromtimestamp(scene.cursor.last_look, UTC) + pause


def look_at(
    claude: ClaudeBatchResource, wanted: set[str], seconds: float
) -> tuple[str | None, Look]:
    """Ask for the state of batches with one `list` call per 1,000 of them, in limited time.

    Also returned is why that was not done to its end, if so: who has ended by then is let go, and
    the next tick has the fewer to ask for.
    """
    found, problem = claude.look_within(sorted(wanted), seconds)
    ended = {batch_id for batch_id, each in found.items() if each.processing_status == "ended"}
    unseen = wanted.difference(found) if found and problem is None else ()
    said = _said(problem, f"it showed {len(found):,} of {len(wanted):,} batches")
    return said, Look(frozenset(ended), frozenset(unseen))


def _said(problem: Exception | None, shown: str) -> str | None:
    if problem is None:
        return None
    if isinstance(problem, TimeoutError):
        return f"The API is slow: {shown} in time."
    if isinstance(problem, (*UNANSWERED, NoCredentialsError)):
        return f"The API could not be asked ({type(problem).__name__}: {problem}); {shown}."
    raise problem


def may_go(held: HeldRun, look: Look, now: datetime) -> bool:
    """Whether a held run whose maker has ended has something to do, room or not."""
    if held.is_ready or not held.waits:
        return True  # or its maker ended before it had paid for anything
    return any(_is_due(wait, look, now) for wait in held.waits) or all(
        wait.batch_ids and look.ended.issuperset(wait.batch_ids) for wait in held.waits
    )


def _is_due(wait: Waiting, look: Look, now: datetime) -> bool:
    if wait.not_before is not None and now >= wait.not_before:
        return True
    return bool(wait.unsent or wait.any_end) and not look.ended.isdisjoint(wait.batch_ids)
