"""What happens outside the engine: to the source, the batches, the clock and the runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulation.circumstances import EVENTS
from simulation.runs import Held, Process, Runs


@dataclass
class Outside(Runs):
    """Everybody but the engine."""

    def _happen(self) -> None:
        possible = [name for name in EVENTS if name in self.circumstances.events]
        event = self.random.choices(possible, [EVENTS[name] for name in possible])[0]
        said = self._events()[event]()
        self.counts[f"event: {event}"] += 1
        self.say(f"* {event}" + (f": {said}" if said else ""))

    def _events(self) -> dict[str, Callable[[], str | None]]:
        return {
            "change": self.world.change_row,
            "add": self._add,
            "remove": self._remove,
            "end batches": self._end_batches,
            "minutes": lambda: self._pass(self.random.uniform(10, 900)),
            "hours": lambda: self._pass(self.random.uniform(900, 6 * 3_600)),
            "day": lambda: self._pass(25 * 3_600.0),
            "month": lambda: self._pass(30 * 86_400.0),
            "cancel batch": self._cancel_batch,
            "delete batch": self._delete_batch,
            "terminate": self._terminate,
            "interrupt": self._interrupt,
            "settle": self._settle,
            "launch": self._launch_another,
            "retry": self._retry,
            "wake": lambda: self._wake_one(early=False),
            "wake early": lambda: self._wake_one(early=True),
        }

    def _add(self) -> str:
        return self.world.load_again() if self.world.left else self.world.add_row()

    def _remove(self) -> str:
        reloads = self.circumstances.reloads
        return self.world.truncate() if reloads else self.world.remove_row()

    def _end_batches(self) -> None:
        self.world.simulator.end_batches()
        self.world.books.learn()

    def _pass(self, seconds: float) -> str:
        """Move the clock, but not past the moment by which a call must have arrived."""
        now = self.world.clock.now()
        bounds = [each.sending_until for each in self.live if each.sending_until is not None]
        left = min(((bound - now).total_seconds() for bound in bounds), default=seconds)
        passed = max(0.0, min(seconds, left / 2 if bounds else seconds))
        self.world.move_clock(passed)
        self._note_archived()
        return f"{passed:.0f} s"

    def _note_archived(self) -> None:
        for batch in self.world.simulator.batches():
            if batch.archived_at is not None and self._is_unlanded(batch.id):
                self.world.books.lost_results.add(batch.id)

    def _is_unlanded(self, batch_id: str) -> bool:
        if not self.world.has("claude_batch.chunks"):
            return True
        return not self.world.sql(
            "SELECT 1 FROM claude_batch.chunks WHERE batch_id = $id AND state = 'landed'",
            id=batch_id,
        )

    def _cancel_batch(self) -> str | None:
        running = [b.id for b in self.world.simulator.batches() if b.ended_at is None]
        if not running:
            return None
        batch_id = self.random.choice(running)
        self.world.simulator.cancel(batch_id)
        return self.world.books.name(batch_id)

    def _delete_batch(self) -> str | None:
        ended = [b.id for b in self.world.simulator.batches() if b.ended_at is not None]
        if not ended:
            return None
        batch_id = self.random.choice(ended)
        self.world.books.learn()
        if self._is_unlanded(batch_id):
            self.world.books.lost_results.add(batch_id)
        self.world.simulator.delete(batch_id)
        return self.world.books.name(batch_id)

    def _terminate(self) -> str | None:
        """A person terminates a held run in Dagster."""
        if not self.held:
            return None
        held = self.random.choice(self.held)
        self.held.remove(held)
        self.abandoned.append(held.run_id)
        return held.run_id

    def _interrupt(self) -> str | None:
        """A person terminates a run at work."""
        at_work = [
            process
            for process in self.live
            if process.partitions
            and not process.runner.is_interrupted
            and process.runner.at is not None
        ]
        if not at_work:
            return None
        process = self.random.choice(at_work)
        self._step(process, "interrupt")
        return process.run_id

    def _launch_another(self) -> None:
        if len(self.live) < 3:
            self._launch()

    def _retry(self) -> str | None:
        """Dagster retries a run whose process has crashed; or a person executes it again."""
        again = [process for process in self.crashed if process.partitions]
        if not again or len(self.live) >= 3:
            return None
        process = self.random.choice(again)
        self.runs += 1
        of_dagster = self.random.random() < 0.5
        retry_of = process.run_id if of_dagster else None
        self._start(f"run{self.runs}", process.partitions, process.config, retry_of)
        return process.run_id

    def _wake_one(self, *, early: bool) -> str | None:
        due = [held for held in self.held if _maker_is_over(held) and (early or self._is_due(held))]
        if not due or len(self.live) >= 3:
            return None
        held = self.random.choice(due)
        self._wake(held)
        return held.run_id

    def _is_due(self, held: Held) -> bool:
        waiting = held.waiting
        if waiting is None:
            return True
        now = self.world.clock.now()
        ended = {b.id for b in self.world.simulator.batches() if b.ended_at is not None}
        some = waiting.unsent > 0 or waiting.any_end
        done = ended.issuperset(waiting.batch_ids) or (
            some and not ended.isdisjoint(waiting.batch_ids)
        )
        if waiting.is_for_room and (waiting.send_after is None or waiting.send_after <= now):
            return True
        too_early = waiting.not_before is None or waiting.not_before > now
        return (bool(waiting.batch_ids) and done) or not too_early

    def _step(self, process: Process, decision: Any) -> None:
        raise NotImplementedError


def _maker_is_over(held: Held) -> bool:
    return held.maker is None or held.maker.is_over
