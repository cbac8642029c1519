"""Keeping a run's sending under its caps: what fits, what waits, and what is given up for one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Final

from dagster_claude_batch import caps, ledger, resending
from dagster_claude_batch.bodies import Body
from dagster_claude_batch.caps import Cap
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.errors import LostChunkError, UncappableError
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.outstanding import SENT, chunks_of, serialize_sending
from dagster_claude_batch.warehouse import Connection
from dagster_claude_batch.workbench import Findings, Outstanding, Workbench

_NEXT_LOOK: Final = timedelta(minutes=5)
"""When to try again where what is out belongs to others."""

_NOT_WORTH_IT: Final = 100
"""What is left of a cap is used up by smaller chunks, until it is less than this part of it."""


@dataclass
class Budget:
    """What one run may spend; ``cap`` is what was in the way at the last look."""

    bench: Workbench
    cap: Cap | None = None

    def require_cappable(self, outstanding: Outstanding) -> None:
        """Make sure that caps can be kept, before anything is sent under them.

        Raises:
            UncappableError: They cannot. The materialization is closed, unless something is out.
        """
        bench = self.bench
        try:
            caps.require_cappable(bench.declaration, bench.claude, outstanding.materialization)
        except UncappableError:
            bench.close(outstanding.materialization, if_unsent=True)
            raise

    def room(self, connection: Connection, materialization: Materialization) -> Decimal | None:
        """USD that may still be spent; None if there is no cap."""
        bench = self.bench
        return caps.room_under(connection, bench.declaration, bench.claude, materialization)

    def look(
        self, connection: Connection, materialization: Materialization, bodies: Sequence[Body]
    ) -> None:
        """Find out whether a cap is in the way of the first of these bodies."""
        bench, self.cap = self.bench, None
        for body in bodies[:1]:
            most = caps.most_usd(bench.declaration, body)
            self.cap = caps.in_the_way(
                connection, bench.declaration, bench.claude, materialization, most
            )

    def hold(self, outstanding: Outstanding, chunk: Chunk, findings: Findings) -> None:
        """Wait for what is out to turn out cheaper; then send less at a time, and then no more."""
        cap = self.cap
        if cap is None:
            return
        (now,) = self.bench.read([outstanding.materialization])
        if now.in_state(*SENT):
            self.bench.log.info("Not more for now: %s.", cap.said(chunk.requests))
        elif cap.name == "max_cost_usd_per_day" and cap.is_out:
            self.bench.log.info("Not more for now: %s.", cap.said(chunk.requests))
            findings.wait_until(self.bench.claude.now() + _NEXT_LOOK)
        else:
            self._send_less(outstanding.materialization, chunk, cap)
            findings.moved = True

    def _send_less(self, materialization: Materialization, chunk: Chunk, cap: Cap) -> None:
        """Cut a planned chunk to what a cap allows; if that is next to nothing, drop the rest."""
        kept = int(chunk.requests * cap.room / cap.needed) if cap.needed else 0
        is_worth_it = cap.room * _NOT_WORTH_IT >= cap.limit

        def work(connection: Connection) -> int | None:
            serialize_sending(connection, self.bench.declaration.workspace)
            now = ledger.get_materialization(connection, materialization.materialization_id)
            plan = self.bench.plan(connection, now)
            ledger.claim_chunks(connection, plan.registered, 0)
            if chunk not in chunks_of(connection, [now.materialization_id], ["planned"]):
                raise LostChunkError(chunk.chunk_id, expected="planned")
            if 0 < kept < chunk.requests and is_worth_it:
                resending.split_after(plan.of_owner(chunk), chunk, kept)
            elif now.state == "open" and not chunks_of(connection, [now.materialization_id], SENT):
                return caps.drop_the_rest(plan, cap, chunk)
            return None

        try:
            left = self.bench.warehouse.transact(work)
        except LostChunkError:
            self.bench.log.info("Another run has taken the chunk over.")
            return
        if left is not None:
            said = cap.said(chunk.requests)
            self.bench.log.error("Sending stops, %s rows are left: %s.", f"{left:,}", said)
