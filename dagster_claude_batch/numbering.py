"""Which rows share a request: the same question is asked once, and short rows go together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dagster_claude_batch.due import DUE
from dagster_claude_batch.plan import Plan
from dagster_claude_batch.warehouse import row, rows

NUMBERED: Final = "temp.claude_batch_numbered"
"""The relation that `number_requests` leaves behind: a selected relation with ``hash``, ``bytes``,
``request`` (its number, from 0), ``position`` (its place among the rows of a request that ask
different things) and ``leads`` (of the rows that ask the same, the first)."""


@dataclass(frozen=True)
class Group:
    """Due rows that may stand in one chunk. ``alone``: each in a request of its own."""

    attempt: int
    max_tokens: int
    alone: bool
    held_back: bool


def groups_of(plan: Plan) -> Iterator[Group]:
    """The groups of the due rows, those first that are sent first."""
    found = _groups(plan)
    if len(found) > 1 and plan.declaration.deduplicate:
        _bring_together(plan)
        found = _groups(plan)
    yield from found


def _groups(plan: Plan) -> list[Group]:
    found = rows(
        plan.connection,
        f"SELECT DISTINCT attempt, max_tokens, alone, held_back FROM {DUE} "
        "ORDER BY held_back, attempt, max_tokens, alone",
    )
    return [Group(*values) for values in found]


def _bring_together(plan: Plan) -> None:
    """Let rows that ask the same be in one group, as the one of them that has come farthest."""
    plan.connection.execute(
        f"UPDATE {DUE} AS due SET attempt = q.attempt, max_tokens = q.max_tokens, alone = q.alone, "
        "held_back = q.held_back FROM (SELECT hash, max(attempt) AS attempt, "
        "max(max_tokens) AS max_tokens, bool_or(alone) AS alone, bool_and(held_back) AS held_back "
        f"FROM {DUE} GROUP BY hash HAVING count(*) > 1) AS q WHERE due.hash = q.hash"
    )


def rows_per_request(plan: Plan, group: Group) -> int:
    """How many different questions one request of a group asks."""
    packing = plan.declaration.packing
    return 1 if packing is None or group.alone else packing.rows_per_request


def number_requests(plan: Plan, group: Group) -> int:
    """Put a group's rows into requests, in their order; how many rows."""
    here = "attempt = $attempt AND max_tokens = $max_tokens AND alone = $alone"
    due = f"SELECT *, rowid AS place FROM {DUE} WHERE {here} AND held_back = $held_back"
    parameters: dict[str, object] = dict(group.__dict__)
    count, questions = row(
        plan.connection, f"SELECT count(*), count(DISTINCT hash) FROM ({due})", parameters
    )
    if plan.declaration.deduplicate and questions < count:
        numbered = (
            "SELECT due.*, item, place = first AS leads FROM due JOIN (SELECT hash, "
            "min(place) AS first, row_number() OVER (ORDER BY min(place)) - 1 AS item "
            "FROM due GROUP BY hash) AS questions ON due.hash = questions.hash"
        )
    else:
        numbered = (
            "SELECT *, row_number() OVER (ORDER BY place) - 1 AS item, true AS leads FROM due"
        )
    plan.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE claude_batch_numbered AS WITH due AS ({due}) "
        "SELECT * EXCLUDE (item), item // $together AS request, item % $together AS position "
        f"FROM ({numbered})",
        {**parameters, "together": rows_per_request(plan, group)},
    )
    return int(count)
