"""What must hold at each create call, when it arrives: nobody pays twice for one answer."""

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from dagster_claude_batch.ledger import Materialization
from simulation.books import Request, requests_in, row_of, sha256_of

if TYPE_CHECKING:
    from simulation.world import World


@dataclass(frozen=True)
class Violation:
    """A broken promise; ``invariant`` is its letter."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"invariant ({self.invariant}): {self.what}"


INVARIANTS = {
    "a": "each row and attempt of a materialization is billed at most once",
    "b": "no second answer is paid for while a usable one exists",
    "c": "every billed answer is known to the ledger, and kept or replaced by a later one",
    "d": "each row of the source has exactly one outcome, of its present prompt",
    "e": "ledger and tables agree with each other and with the bill",
    "f": "it always comes to rest",
    "g": "each run ends truthfully, and nothing is sent for what was cancelled",
    "h": "nothing is sent that could go over a cap",
}


def check_create(world: "World", body: bytes) -> list[Violation]:
    """What is wrong with a create call that arrives now, by the ledger as it is committed."""
    requests = [Request("", custom_id, *row_of(params)) for custom_id, params in requests_in(body)]
    intent = _intent(world, requests[0].nonce)
    if intent is None or len({request.nonce for request in requests}) > 1:
        return [Violation("c", "a batch is sent without its intent in the ledger")]
    return [
        *_check_intent(world, intent, body),
        *_check_answers(world, requests, intent),
        *_check_cap(world, body, intent),
    ]


def _check_cap(world: "World", body: bytes, intent: dict[str, Any]) -> list[Violation]:
    """What a materialization has cost, and at most will, by what was asked and answered."""
    cap = json.loads(intent["config"])["max_cost_usd"]
    if cap is None:
        return []
    ours = world.sql(
        "SELECT nonce, batch_id FROM claude_batch.chunks WHERE materialization_id = $id "
        "AND nonce IS NOT NULL AND NOT is_copy AND state <> 'given_up'",
        id=intent["materialization"],
    )
    nonces = {str(nonce) for nonce, _ in ours}
    world.books.learn()
    total = sum((_most(params) for _, params in requests_in(body)), Decimal(0))
    for batch_id, requests in world.books.batches.items():
        if batch_id in world.books.strays or requests[0].nonce not in nonces:
            continue
        total += sum((_cost(world, request) for request in requests), Decimal(0))
    if total > Decimal(str(cap)):
        return [Violation("h", f"{total} USD may be spent, of {cap}")]
    return []


INPUT: Final = Decimal("0.05e-6")
OUTPUT: Final = Decimal("0.25e-6")
"""USD for a token of the default model in a batch."""


def _cost(world: "World", request: Request) -> Decimal:
    """What a request has cost, as soon as its batch has ended; at most, until then."""
    result = world.books.result(request)
    if result is None:
        asked = dict(world.simulator.requests(request.batch_id))
        return _most(asked[request.custom_id])
    if result["type"] != "succeeded":
        return Decimal(0)
    usage = result["message"]["usage"]
    return usage["input_tokens"] * INPUT + usage["output_tokens"] * OUTPUT


def _most(params: dict[str, Any]) -> Decimal:
    """No token is shorter than a byte."""
    return len(json.dumps(params)) * INPUT + params["max_tokens"] * OUTPUT


def _intent(world: "World", nonce: str) -> dict[str, Any] | None:
    names = ("state", "sha256", "sending_at", "materialization", "config", "over", "ended_at")
    found = world.sql(
        "SELECT c.state, body_sha256, sending_at, c.materialization_id, m.config, "
        "m.state <> 'open', m.ended_at FROM claude_batch.chunks AS c "
        "JOIN claude_batch.materializations AS m USING (materialization_id) "
        "WHERE nonce = $nonce",
        nonce=nonce,
    )
    return dict(zip(names, found[0], strict=True)) if found else None


def _check_intent(world: "World", intent: dict[str, Any], body: bytes) -> list[Violation]:
    problems: list[Violation] = []
    if intent["state"] != "sending":
        problems.append(Violation("c", f"a chunk is sent in the state {intent['state']}"))
    if intent["sha256"] != sha256_of(body):
        problems.append(Violation("e", "the ledger has another sha256 than the body that is sent"))
    # Each of the two is by the clock of the process that wrote it.
    if intent["over"] and intent["sending_at"] > intent["ended_at"] + world.clocks_apart:
        problems.append(Violation("g", "a chunk is sent for a materialization that is over"))
    return problems


def _check_answers(
    world: "World", requests: list[Request], intent: dict[str, Any]
) -> list[Violation]:
    asked = {(request.key, request.text) for request in requests}
    before = [r for r in world.books.requests() if (r.key, r.text) in asked]
    if not before:
        return []
    kept, states = kept_answers(world), chunk_states(world)
    answered = kept.keys() | _last_answers(world)
    refresh = '"refresh": true' in intent["config"]
    problems: list[Violation] = []
    for earlier in before:
        state, materialization = states.get(earlier.batch_id, ("unknown", None))
        batch = world.books.name(earlier.batch_id)
        if state == "unknown" and earlier.batch_id in world.books.lost_results:
            continue  # nobody could have told that it was this chunk's
        if state != "landed" and earlier.batch_id in world.books.strays:
            continue  # it should not be there, and is a second copy
        if state != "landed":
            problems.append(Violation("b", f"{earlier.key} is sent while it is out in {batch}"))
        elif earlier.identity in answered and not (
            refresh and materialization != intent["materialization"]
        ):
            problems.append(
                Violation("b", f"{earlier.key} is sent, but {batch} has answered it already")
            )
    return problems


def _last_answers(world: "World") -> set[tuple[str, str]]:
    """The last answer of each row that has landed: whether or not a table still holds it."""
    landed = dict(
        world.sql(
            "SELECT batch_id, landed_at FROM claude_batch.chunks "
            "WHERE state = 'landed' AND batch_id IS NOT NULL"
        )
    )
    books = world.books
    answers = [
        request
        for request in books.requests()
        if request.batch_id in landed
        and request.batch_id not in books.strays
        and books.is_usable(request)
        and not books.is_unreadable(request)
    ]
    answers.sort(key=lambda request: landed[request.batch_id])
    return {request.identity for request in {each.key: each for each in answers}.values()}


def check_done(
    world: "World", materialization: Materialization, additions: int | None
) -> list[Violation]:
    """What is wrong with a green light that is given now.

    ``additions`` is how many rows had come to the source when it began; None if nobody knows.
    """
    identity = materialization.materialization_id
    (state,) = world.sql(
        "SELECT state FROM claude_batch.materializations WHERE materialization_id = $id",
        id=identity,
    )[0]
    if state == "open":
        return [Violation("g", "a run is done, its materialization is open")]
    out = world.sql(
        "SELECT count(*) FROM claude_batch.chunks WHERE materialization_id = $id "
        "AND list_contains(['planned', 'sending', 'submitted'], state) AND NOT is_copy",
        id=identity,
    )
    problems = (
        [Violation("g", "a run is done, and something of it is out")] if out != [(0,)] else []
    )
    if state != "done" or additions is None:
        return problems
    left = _left(world, [materialization])
    unknown = _unknown(world, set(materialization.partitions) - left, additions)
    return problems + unknown


def _left(world: "World", materializations: Sequence[Materialization]) -> set[str]:
    """Partitions of which it is said that a cap has left rows of them: no green light."""
    found = world.sql(
        "SELECT DISTINCT unnest(left_partitions) FROM claude_batch.materializations "
        "WHERE list_contains($ids, materialization_id)",
        ids=[each.materialization_id for each in materializations],
    )
    return {str(partition) for (partition,) in found}


def check_launch(
    world: "World",
    materializations: Sequence[Materialization],
    partitions: Sequence[str],
    additions: int,
) -> list[Violation]:
    """What is wrong with a green light for a launch when so many rows had come to the source."""
    states = world.sql(
        "SELECT DISTINCT state FROM claude_batch.materializations "
        "WHERE list_contains($ids, materialization_id)",
        ids=[each.materialization_id for each in materializations],
    )
    if states != [("done",)]:
        return []
    return _unknown(world, set(partitions) - _left(world, materializations), additions)


def _unknown(
    world: "World", partitions: AbstractSet[str | None], additions: int
) -> list[Violation]:
    """Rows that neither table has, although they had come by then."""
    without = world.sql(
        "SELECT id FROM texts WHERE list_contains($partitions, corpus) "
        "AND id NOT IN (SELECT id FROM main.sentiment) "
        "AND id NOT IN (SELECT id FROM main.sentiment_failures) ORDER BY id",
        partitions=sorted(str(each) for each in partitions),
    )
    return [
        Violation("g", f"a run is done, and nobody knows what has become of {key}")
        for (key,) in without
        if world.added.get(key, 0) <= additions
    ]


def kept_answers(world: "World") -> dict[tuple[str, str], str]:
    """Where each answer is that the tables hold, by batch and custom id."""
    answers = world.sql("SELECT _batch_id, _custom_id FROM main.sentiment")
    departed = world.sql(
        "SELECT answer ->> '$._batch_id', answer ->> '$._custom_id' FROM claude_batch.departed"
    )
    return {
        **{(str(batch), str(custom)): "departed" for batch, custom in departed},
        **{(str(batch), str(custom)): "answers" for batch, custom in answers},
    }


def chunk_states(world: "World") -> dict[str, tuple[str, str]]:
    """State and materialization of the chunk of each batch that the ledger knows."""
    return {
        batch_id: (state, materialization)
        for batch_id, state, materialization in world.sql(
            "SELECT batch_id, state, materialization_id FROM claude_batch.chunks "
            "WHERE batch_id IS NOT NULL"
        )
    }
