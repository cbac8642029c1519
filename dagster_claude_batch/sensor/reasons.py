"""Why a held run is let go, for its page."""

from datetime import datetime

from dagster_claude_batch.held_run import HeldRun
from dagster_claude_batch.sensor.looking import Look


def why_go(held: HeldRun, look: Look, now: datetime) -> tuple[str, str]:
    """Why a run is let go that may be: in at most 22 characters, and in a sentence."""
    if not held.waits:
        return "goes on", "The run before this one has ended; this one goes on with what it left."
    if held.is_ready:
        return "a slot is free", "This run has something to do, and its pool has a free slot."
    if not look.unseen.isdisjoint(held.batch_ids):
        return "looks for batches", "The API does not show a batch of this run, which looks for it."
    if any(wait.not_before is not None and now >= wait.not_before for wait in held.waits):
        return "its time has come", "The moment has come until which this run was to wait."
    if held.batch_ids and look.ended.issuperset(held.batch_ids):
        return "results ready", "The batches have ended; this run collects their results."
    if not look.ended.isdisjoint(held.batch_ids):
        return "some results ready", "A batch has ended; this run collects its results and goes on."
    return "room to send", "There is room for more requests; this run sends what was left."
