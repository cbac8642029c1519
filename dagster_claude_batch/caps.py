"""What may be spent: caps, what counts against them, and what is not sent because of one.

What is out counts as the most it can cost, and as what it did cost once that is known. What
nobody can know any more, for its results are gone, goes on counting as the most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal

from dagster_claude_batch import ledger
from dagster_claude_batch.bodies import Body
from dagster_claude_batch.chunks import Chunk
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.doubt import WATCHED
from dagster_claude_batch.errors import UncappableError
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.matching import ours_is_ours
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.resource import ClaudeBatchResource
from dagster_claude_batch.warehouse import Connection, row, rows

CapName = Literal["max_cost_usd", "max_cost_usd_per_day"]

_TOKENS_OF_THE_API: Final = 1_000
"""What the API adds to one prompt, at the most, to say how an output looks or tools are used."""


@dataclass(frozen=True)
class Cap:
    """A cap that is in the way: USD that it allows, that are used, and that are needed besides.

    ``is_out``: something that counts has not landed, and may turn out cheaper.
    """

    name: CapName
    limit: Decimal
    used: Decimal
    needed: Decimal
    is_out: bool

    @property
    def room(self) -> Decimal:
        """USD that are left."""
        return max(Decimal(0), self.limit - self.used)

    def said(self, requests: int) -> str:
        """Why so many requests are not sent."""
        of = "" if self.name == "max_cost_usd" else " for this day (UTC)"
        return (
            f"`{self.name}` allows {self.limit:f} USD{of}; {self.used:.6f} USD of it are used, and "
            f"the next {requests:,} requests may cost up to {self.needed:.6f} USD"
        )


def limits_of(
    claude: ClaudeBatchResource, materialization: Materialization
) -> Mapping[CapName, Decimal]:
    """The caps that hold for what a materialization sends, in USD."""
    found: Mapping[CapName, float | None] = {
        "max_cost_usd": materialization.config.max_cost_usd,
        "max_cost_usd_per_day": claude.max_cost_usd_per_day,
    }
    return {name: Decimal(str(limit)) for name, limit in found.items() if limit is not None}


def require_cappable(
    declaration: Declaration, claude: ClaudeBatchResource, materialization: Materialization
) -> None:
    """Make sure that caps can be kept.

    Raises:
        UncappableError: There is one, and nobody can say what a request costs at the most.
    """
    problem = why_not(declaration)
    for name in limits_of(claude, materialization):
        if problem is not None:
            raise UncappableError(declaration.asset, name, problem)


def why_not(declaration: Declaration) -> str | None:
    """Why nobody can say what a request costs at the most, as a clause; None if one can."""
    if declaration.batch_prices() is None:
        return f"no price of {declaration.shape.model} in a batch is known (`prices` may say it)"
    tool = declaration.shape.endless_tool
    if tool is not None:
        return f"{tool} brings any number of tokens into a prompt"
    return None


def most_usd(declaration: Declaration, body: Body) -> Decimal | None:
    """What a body costs at the most; None if there is no price."""
    return _most_usd(
        declaration,
        body.chunk,
        prompt_tokens=body.most_tokens,
        largest_prompt=body.most_tokens_of_request,
    )


def planned_usd(declaration: Declaration, chunk: Chunk) -> Decimal | None:
    """What a planned chunk may cost at the most, as far as its planned size tells."""
    return _most_usd(
        declaration,
        chunk,
        prompt_tokens=chunk.bytes,
        largest_prompt=chunk.bytes // max(1, chunk.requests),
    )


def _most_usd(
    declaration: Declaration, chunk: Chunk, *, prompt_tokens: int, largest_prompt: int
) -> Decimal | None:
    prices, shape = declaration.batch_prices(), declaration.shape
    if prices is None:
        return None
    packing = declaration.packing
    answers = packing.rows_per_request if packing is not None and chunk.is_packed else 1
    added = _TOKENS_OF_THE_API if shape.has_more_than_it_says else 0
    return prices.most_usd(
        requests=chunk.requests,
        prompt_tokens=prompt_tokens + added * chunk.requests,
        largest_prompt=largest_prompt + added,
        output_tokens=chunk.max_tokens * answers,
        caches=shape.may_cache,
    )


def in_the_way(
    connection: Connection,
    declaration: Declaration,
    claude: ClaudeBatchResource,
    materialization: Materialization,
    needed: Decimal | None,
) -> Cap | None:
    """The cap that does not allow to spend so much more, the tightest if there are several."""
    found: list[Cap] = []
    now = claude.now()
    for name, limit in limits_of(claude, materialization).items():
        used, out = _used(connection, declaration, materialization, name, now)
        cap = Cap(name, limit, used, needed or Decimal(0), bool(out))
        if cap.needed > cap.room or cap.used >= cap.limit:
            found.append(cap)
    return min(found, key=lambda cap: cap.room, default=None)


def room_under(
    connection: Connection,
    declaration: Declaration,
    claude: ClaudeBatchResource,
    materialization: Materialization,
) -> Decimal | None:
    """USD that may still be spent; None if there is no cap."""
    now = claude.now()
    return min(
        (
            limit - _used(connection, declaration, materialization, name, now)[0]
            for name, limit in limits_of(claude, materialization).items()
        ),
        default=None,
    )


def _used(
    connection: Connection,
    declaration: Declaration,
    materialization: Materialization,
    name: CapName,
    now: datetime,
) -> tuple[Decimal, int]:
    """USD that count against a cap, and chunks of that which are, or may be, out."""
    of = {
        "max_cost_usd": "materialization_id = $materialization_id",
        "max_cost_usd_per_day": "workspace = $workspace AND sending_at >= $midnight",
    }
    used, out = row(
        connection,
        "SELECT coalesce(sum(CASE WHEN state = 'landed' THEN coalesce(cost_usd, most_usd) "
        "WHEN state IN ('sending', 'submitted') OR (state = 'given_up' AND sending_at > $since) "
        "THEN most_usd END), 0), count(*) FILTER (state IN ('sending', 'submitted')) "
        f"FROM claude_batch.chunks WHERE {of[name]}",
        {
            "since": now - WATCHED,
            **(
                {"materialization_id": materialization.materialization_id}
                if name == "max_cost_usd"
                else {
                    "workspace": declaration.workspace,
                    "midnight": now.astimezone(UTC).replace(
                        hour=0, minute=0, second=0, microsecond=0
                    ),
                }
            ),
        },
    )
    return Decimal(used), int(out)


def drop_the_rest(plan: Plan, cap: Cap, chunk: Chunk) -> int:
    """Send nothing more of a materialization, and note why; how many rows have no outcome."""
    identity = plan.materialization.materialization_id
    requests = plan.registered.requests.sql
    dropped = rows(
        plan.connection,
        "UPDATE claude_batch.chunks SET state = 'dissolved' WHERE materialization_id = $identity "
        "AND state IN ('planned', 'held_back', 'elsewhere') RETURNING chunk_id",
        {"identity": identity},
    )
    bound = {"dropped": [chunk_id for (chunk_id,) in dropped]}
    known = [
        f"NOT EXISTS (SELECT 1 FROM {table.sql} AS here WHERE "
        f"{ours_is_ours(plan.declaration, 'here', 'q')} "
        "AND here._request_hash IS NOT DISTINCT FROM q._request_hash)"
        for table in (plan.declaration.answers, plan.declaration.failures)
    ]
    refreshed = "true" if plan.materialization.config.refresh else " AND ".join(known)
    here = "_chunk_id IN (SELECT unnest($dropped::BIGINT[]))"
    left = rows(
        plan.connection,
        f"SELECT q._partition, count(*) FROM {requests} AS q WHERE {here} AND {refreshed} "
        "GROUP BY ALL ORDER BY ALL",
        bound,
    )
    plan.connection.execute(f"DELETE FROM {requests} WHERE {here}", bound)
    said = cap.said(chunk.requests)
    ledger.note_capped(plan.connection, identity, said, dict(left))
    return sum(int(count) for _, count in left)
