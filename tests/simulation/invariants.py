"""What must hold once everything has come to rest."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from simulation.books import Request
from simulation.oracle import INPUT, OUTPUT, Violation, kept_answers

if TYPE_CHECKING:
    from simulation.world import World


def check_at_rest(world: "World") -> list[Violation]:
    """All violations; the state does not change."""
    world.books.learn()
    world.books.read_bill()
    if not world.has("claude_batch.chunks"):
        return []
    ledger = _Ledger(world)
    return [
        *_billed_once(world, ledger),
        *_kept(world, ledger),
        *_one_outcome(world),
        *_agreement(world, ledger),
        *_rest(world, ledger),
    ]


_UNSENT = {"expired"}
"""Errors of rows that could not be sent before their time was over."""


class _Ledger:
    """The ledger's chunks by batch, and its requests by batch and ordinal."""

    def __init__(self, world: "World") -> None:
        chunks = _dicts(world, "SELECT * FROM claude_batch.chunks")
        self.chunks = {chunk["batch_id"]: chunk for chunk in chunks if chunk["batch_id"]}
        self.all_chunks = chunks
        table = world.sql("SELECT asset_id FROM claude_batch.assets")[0][0]
        by_chunk = {chunk["chunk_id"]: chunk for chunk in chunks}
        self.requests = _dicts(world, f"SELECT * FROM claude_batch.requests_{table}")
        self.by_identity: dict[tuple[str, int], dict[str, Any]] = {}
        for request in self.requests:
            chunk = by_chunk[request["_chunk_id"]]
            request["materialization"] = chunk["materialization_id"]
            request["state"] = chunk["state"]
            if chunk["batch_id"]:
                self.by_identity[chunk["batch_id"], request["_ordinal"]] = request

    def of(self, request: Request) -> dict[str, Any] | None:
        return self.by_identity.get((request.batch_id, _ordinal(request.custom_id)))


def _dicts(world: "World", sql: str) -> list[dict[str, Any]]:
    cursor = world.keeper.execute(sql)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def _ordinal(custom_id: str) -> int:
    return int(custom_id.rpartition("-")[2])


def _billed_once(world: "World", ledger: _Ledger) -> Iterator[Violation]:
    """(a), by the bill and the attempts that the ledger counts."""
    times = Counter[tuple[str, str, int]]()
    for request in world.books.requests():
        chunk = ledger.chunks.get(request.batch_id)
        if request.batch_id in world.books.strays:
            continue
        if chunk is not None and world.books.billed[request.identity]:
            times[chunk["materialization_id"], request.key, chunk["attempt"]] += 1
    for (_, key, attempt), count in times.items():
        if count > 1:
            yield Violation("a", f"attempt {attempt} of {key} was billed {count} times")


def _kept(world: "World", ledger: _Ledger) -> Iterator[Violation]:
    """(c): what was billed is known, and the last answer of each row is in a table."""
    landed: dict[str, tuple[Any, Request]] = {}
    for request in world.books.requests():
        if not world.books.billed[request.identity]:
            continue
        problem = _not_landed(world, ledger, request)
        if problem is not None:
            yield Violation("c", f"{request.key} in {world.books.name(request.batch_id)} {problem}")
        elif _counts_as_answer(world, ledger, request):
            moment = ledger.chunks[request.batch_id]["landed_at"]
            if request.key not in landed or moment > landed[request.key][0]:
                landed[request.key] = moment, request
    kept = kept_answers(world)
    later = _answers_of_strays(world, ledger, kept)
    for moment, request in landed.values():
        is_replaced = request.key in later and later[request.key] > moment
        if request.identity not in kept and not is_replaced:
            name = world.books.name(request.batch_id)
            yield Violation("c", f"the last answer to {request.key}, of {name}, is in no table")
    yield from _strays_kept(world, kept, set(landed))


def _answers_of_strays(
    world: "World", ledger: _Ledger, kept: dict[tuple[str, str], str]
) -> dict[str, Any]:
    """When the rows were answered for which a second copy's answer stands."""
    return {
        request.key: ledger.chunks[request.batch_id]["landed_at"]
        for request in world.books.requests()
        if request.batch_id in world.books.strays and kept.get(request.identity) == "answers"
    }


def _not_landed(world: "World", ledger: _Ledger, request: Request) -> str | None:
    """In what way the ledger does not know a billed request."""
    known = ledger.of(request)
    if known is None:
        # Where its results were gone before anybody could tell whose they were, nobody can know.
        is_lost = request.batch_id in world.books.lost_results
        return None if is_lost else "was billed, and the ledger lacks it"
    if known["state"] != "landed":
        return "was billed, and has not landed"
    readable = world.books.is_usable(request) and not world.books.is_unreadable(request)
    if readable and known["_outcome"] != "answer":
        return f"was answered, and landed as {known['_outcome']}"
    return None


def _counts_as_answer(world: "World", ledger: _Ledger, request: Request) -> bool:
    """Whether its answer must be there, unless a later one has taken its place."""
    return (
        ledger.of(request) is not None
        and world.books.is_usable(request)
        and not world.books.is_unreadable(request)
        and request.batch_id not in world.books.strays
    )


def _strays_kept(
    world: "World", kept: dict[tuple[str, str], str], answered: set[str]
) -> Iterator[Violation]:
    """A second copy's answer is kept where there is no other."""
    has_any = answered | {r.key for r in world.books.requests() if r.identity in kept}
    for request in world.books.requests():
        is_paid = request.batch_id in world.books.strays and world.books.billed[request.identity]
        readable = world.books.is_usable(request) and not world.books.is_unreadable(request)
        if is_paid and readable and request.key not in has_any:
            yield Violation("c", f"the only answer to {request.key}, a stray's, is in no table")


def _one_outcome(world: "World") -> Iterator[Violation]:
    """(d), and that each outcome is one of the row's present prompt."""
    asked = {request.identity: request for request in world.books.requests()}
    source = {(corpus, key): text for corpus, key, text in world.sql("SELECT * FROM texts")}
    outcomes = defaultdict[tuple[str, str], list[tuple[Any, ...]]](list)
    for table, error in (("sentiment", "NULL"), ("sentiment_failures", "_error_type")):
        for partition, key, *identity in world.sql(
            f"SELECT _partition, id, _batch_id, _custom_id, {error} FROM main.{table}"
        ):
            outcomes[partition, key].append((table, *identity))
    for row in sorted(source.keys() | outcomes.keys()):
        found = outcomes.get(row, [])
        tables = ", ".join(each[0] for each in found) or "no table"
        if row not in source:
            yield Violation("d", f"{row[1]} has left the source, and is in {tables}")
        elif len(found) != 1:
            yield Violation("d", f"{row[1]} is in {tables}")
        else:
            yield from _of_present_prompt(row[1], source[row], found[0], asked, world.refused_alone)


def _of_present_prompt(
    key: str,
    text: str | None,
    outcome: tuple[Any, ...],
    asked: dict[tuple[str, str], Request],
    refused_alone: set[tuple[str, str]],
) -> Iterator[Violation]:
    table, batch_id, custom_id, error = outcome
    if text is None:
        if batch_id is not None:
            yield Violation("d", f"{key} cannot be asked, and is in {table} as if it had been")
        return
    request = asked.get((batch_id, custom_id))
    if batch_id is None and (error in _UNSENT or (key, text) in refused_alone):
        return
    if request is None:
        yield Violation("d", f"{key} is in {table} with a custom id that was never sent")
    elif (request.key, request.text) != (key, text):
        yield Violation("d", f"{key} says {text!r}; {table} is about {request.text!r}")


def _agreement(world: "World", ledger: _Ledger) -> Iterator[Violation]:
    """(e): counts, usage and cost, chunk by chunk and row by row."""
    bill = {(each.batch_id, each.custom_id): each.usage for each in world.simulator.bill()}
    counts = {batch.id: batch.request_counts for batch in world.simulator.batches()}
    sizes = Counter(request["_chunk_id"] for request in ledger.requests)
    for batch_id, chunk in ledger.chunks.items():
        name = world.books.name(batch_id)
        if batch_id not in world.books.batches:
            yield Violation("e", "the ledger knows a batch that was never created")
            continue
        requests = world.books.batches[batch_id]
        if not len(requests) == chunk["requests"] == sizes[chunk["chunk_id"]]:
            yield Violation("e", f"{name} has another size in the ledger")
        if chunk["state"] == "landed" and batch_id in counts:
            kinds = ("succeeded", "errored", "canceled", "expired")
            if [chunk[kind] for kind in kinds] != [
                getattr(counts[batch_id], k) for k in kinds
            ] and (batch_id not in world.books.lost_results):
                yield Violation("e", f"{name} has other counts in the ledger")
        for request in requests:
            yield from _usage(world, ledger, request, bill.get(request.identity))
    yield from _sums(world, ledger)
    yield from _costs_of_chunks(ledger)


def _costs_of_chunks(ledger: _Ledger) -> Iterator[Violation]:
    """What a chunk cost is what its requests did, and at most what was to be feared."""
    of_chunk = defaultdict[int, list[Decimal | None]](list)
    for request in ledger.requests:
        of_chunk[request["_chunk_id"]].append(request["_cost_usd"])
    for chunk in ledger.all_chunks:
        if chunk["state"] != "landed":
            continue
        costs = of_chunk[chunk["chunk_id"]]
        known = [cost for cost in costs if cost is not None]
        expected = sum(known, Decimal(0)) if len(known) == len(costs) else None
        if chunk["cost_usd"] != expected:
            yield Violation("e", f"a chunk cost {expected}, the ledger: {chunk['cost_usd']}")
        if chunk["nonce"] and expected is not None and expected > chunk["most_usd"]:
            yield Violation("e", f"a chunk cost {expected}, more than {chunk['most_usd']}")


def _usage(
    world: "World", ledger: _Ledger, request: Request, usage: dict[str, Any] | None
) -> Iterator[Violation]:
    """What the ledger has for one request is what the bill says, as far as it could be read."""
    known = ledger.of(request)
    if known is None or known["state"] != "landed":
        return
    if known["id"] != request.key:
        yield Violation("e", f"the ledger takes {request.key} for {known['id']}")
    if world.books.is_unreadable(request) or world.books.result(request) is None:
        return
    tokens = [usage["input_tokens"], usage["output_tokens"]] if usage else [0, 0]
    if [known["_input_tokens"], known["_output_tokens"]] != tokens:
        yield Violation("e", f"the ledger has other tokens for {request.key}")
    result = world.books.result(request) or {}
    expected = sum(price * count for price, count in zip((INPUT, OUTPUT), tokens, strict=True))
    if result["type"] in {"succeeded", "errored", "canceled", "expired"} and (
        known["_cost_usd"] is None or abs(Decimal(known["_cost_usd"]) - expected) > Decimal("1e-9")
    ):
        yield Violation("e", f"{request.key} cost {expected}, the ledger: {known['_cost_usd']}")


def _sums(world: "World", ledger: _Ledger) -> Iterator[Violation]:
    """Each outcome carries the usage of all the row's attempts in its materialization."""
    spent = defaultdict[tuple[str, str], list[dict[str, Any]]](list)
    for request in ledger.requests:
        if request["state"] == "landed":
            spent[request["materialization"], request["id"]].append(request)
    strayed = {
        (ledger.chunks[request.batch_id]["materialization_id"], request.key)
        for request in world.books.requests()
        if request.batch_id in world.books.strays and request.batch_id in ledger.chunks
    }
    for table in ("sentiment", "sentiment_failures"):
        for row in _dicts(world, f"SELECT * FROM main.{table} WHERE _batch_id IS NOT NULL"):
            chunk = ledger.chunks.get(row["_batch_id"])
            if chunk is None:
                yield Violation("e", f"{row['id']} is in {table} of a batch the ledger lacks")
                continue
            if (chunk["materialization_id"], row["id"]) in strayed:
                continue  # which of two copies a row's share counts, nobody has promised
            attempts = [
                each
                for each in spent[chunk["materialization_id"], row["id"]]
                if each["_attempt"] <= chunk["attempt"]
            ]
            for column in ("_input_tokens", "_output_tokens"):
                if row[column] != sum(each[column] or 0 for each in attempts):
                    yield Violation("e", f"{row['id']} has other {column} in {table} than in all")
            if row["_attempts"] != chunk["attempt"]:
                yield Violation("e", f"{row['id']} was asked {chunk['attempt']} times")


def _rest(world: "World", ledger: _Ledger) -> Iterator[Violation]:
    """(f): nothing is out, and nothing open."""
    for chunk in ledger.all_chunks:
        if chunk["state"] in {"planned", "sending", "submitted"}:
            yield Violation("f", f"a chunk stays {chunk['state']}")
    for (state,) in world.sql("SELECT state FROM claude_batch.materializations"):
        if state == "open":
            yield Violation("f", "a materialization stays open")
