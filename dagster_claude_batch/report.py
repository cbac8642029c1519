"""How a run's partitions ended: counts, cost and a preview, read from the tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from dagster_claude_batch import ledger
from dagster_claude_batch.advice import Use
from dagster_claude_batch.cost import STANDARD, sum_if_known
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.identifiers import quote_identifier
from dagster_claude_batch.ledger import LedgerAsset, Materialization
from dagster_claude_batch.matching import selected_is_ours
from dagster_claude_batch.source import PartitionSlice, find_source, select_rows
from dagster_claude_batch.tables import columns_of
from dagster_claude_batch.warehouse import Connection, Warehouse, row, rows

PREVIEW_ROWS = 5
_PREVIEW_CHARACTERS = 200


@dataclass(frozen=True)
class Usage:
    """What this materialization's requests for a partition came to; cost None if unknown.

    That is if the model has no price, or if ``untold`` requests may have been billed whose results
    nobody has seen. ``answers`` are rows that these requests have answered.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_usd: Decimal | None = Decimal(0)
    untold: int = 0
    answers: int = 0
    web_searches: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, cached ones included."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    @property
    def cache_hit_rate(self) -> float:
        """Share of the prompts' tokens that were read from the cache."""
        return self.cache_read_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def standard_usd(self, web_search: Decimal) -> Decimal | None:
        """What the same would have cost outside batches, at so much for 1,000 web searches."""
        if self.cost_usd is None:
            return None
        # Tokens cost half in a batch, searches do not.
        return STANDARD * self.cost_usd - self.web_searches * web_search / 1_000


@dataclass(frozen=True)
class PartitionReport:
    """One partition as its tables show it, and what this materialization did for it.

    ``sent`` and ``retried`` are requests, each of which may be of several rows. ``deduplicated``
    rows were answered by another row's request. ``is_asked`` once a materialization that was to ask
    all its rows has come to its end.
    ``come_since`` are rows of the source, as it is now, that have no outcome as they are; None if
    it cannot be read. ``left`` rows have no outcome, for a cap, which ``capped`` names, kept them
    from being sent.
    """

    partition: str | None
    answered: int
    failed_by_type: Mapping[str, int]
    sent: int
    retried: int
    deduplicated: int
    kept_despite_failure: int
    usage: Usage
    batch_ids: Sequence[str] = ()
    waited_seconds: float = 0.0
    preview: Sequence[Mapping[str, Any]] = field(default=())
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    answers_in_table: int = 0
    is_asked: bool = True
    come_since: int | None = 0
    use: Use = field(default_factory=Use)
    left: int = 0
    capped: str | None = None

    @property
    def failed(self) -> int:
        """Rows without an answer."""
        return sum(self.failed_by_type.values())

    @property
    def rows(self) -> int:
        """Rows of the partition that have an outcome."""
        return self.answered + self.failed

    @property
    def failure_rate(self) -> float:
        """Share of rows without an answer; 0 for an empty partition."""
        return self.failed / self.rows if self.rows else 0.0


def read_reports(
    warehouse: Warehouse,
    declaration: Declaration,
    materializations: Sequence[Materialization],
    partitions: Sequence[str | None] | None,
    slices_of: Callable[[Sequence[str | None]], list[PartitionSlice]],
) -> list[PartitionReport]:
    """How each partition stands, with None all that have rows; nothing if none was ever asked."""

    def work(connection: Connection) -> list[PartitionReport]:
        is_there = ledger.is_ledger(connection)
        registered = ledger.find_asset(connection, declaration.asset) if is_there else None
        if registered is None:
            return []
        asked = ledger.asked_partitions(connection, declaration.asset)
        keys = partitions_with_rows(connection, declaration) if partitions is None else partitions
        if partitions is None:
            keys = list(dict.fromkeys([*keys, *sorted(key for key in asked if key is not None)]))
        return [
            replace(
                report_on(connection, declaration, registered, materializations, key),
                is_asked=key in asked,
            )
            for key in keys
        ]

    found = warehouse.transact(work)
    if not found:
        return []
    since = _read_since(warehouse, declaration, slices_of, [each.partition for each in found])
    return [
        replace(each, come_since=None if since is None else since.get(each.partition, 0))
        for each in found
    ]


def _left(
    connection: Connection, materializations: Sequence[Materialization], partition: str | None
) -> dict[str, Any]:
    """What a cap kept from being sent, as the ledger has it now."""
    for each in materializations:
        now = ledger.get_materialization(connection, each.materialization_id)
        if partition in now.left:
            return {"left": now.left[partition], "capped": now.capped}
    return {}


def _read_since(
    warehouse: Warehouse,
    declaration: Declaration,
    slices_of: Callable[[Sequence[str | None]], list[PartitionSlice]],
    partitions: Sequence[str | None],
) -> Mapping[str | None, int] | None:
    # In a transaction of its own: an error in the user's SQL would end the other one.
    try:
        slices = slices_of(partitions)
        return warehouse.transact(lambda connection: count_since(connection, declaration, slices))
    except Exception as error:  # noqa: BLE001  # whatever is wrong with the source, its answers are here
        warehouse.log.warning(f"The source cannot be read now ({type(error).__name__}).")
        return None


def count_since(
    connection: Connection, declaration: Declaration, slices: Sequence[PartitionSlice]
) -> Mapping[str | None, int]:
    """Count, by partition, rows of the source that have no outcome as they are now.

    In one query for all partitions, which renders their rows once.
    """
    source = find_source(connection, declaration)
    query = select_rows(connection, declaration, source, slices)
    sql = f"""
        SELECT r.partition, count(*) FROM ({query.sql}) AS r
        ANTI JOIN {declaration.answers.sql} AS a
            ON {selected_is_ours(declaration, "r", "a")} AND a._request_hash = r.hash
        ANTI JOIN {declaration.failures.sql} AS f ON {selected_is_ours(declaration, "r", "f")}
        GROUP BY ALL
    """
    with query.callable_on(connection):
        return dict(rows(connection, sql, query.parameters))


def report_on(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    materializations: Sequence[Materialization],
    partition: str | None,
) -> PartitionReport:
    """Read one partition's outcome."""
    ids = [each.materialization_id for each in materializations]
    answers = declaration.answers.sql
    here = "_partition IS NOT DISTINCT FROM $partition"
    bound = {"partition": partition}
    (answered,) = row(connection, f"SELECT count(*) FROM {answers} WHERE {here}", bound)
    failed = rows(
        connection,
        f"SELECT _error_type, count(*) FROM {declaration.failures.sql} WHERE {here} "
        "GROUP BY ALL ORDER BY count(*) DESC, _error_type",
        bound,
    )
    sent = _sent(connection, registered, ids, partition)
    batch_ids, waited = _batches(connection, registered, ids, partition)
    return PartitionReport(
        partition,
        answered,
        dict(failed),
        *sent[:2],
        deduplicated=_reused(connection, declaration, materializations, partition)
        + _together(connection, registered, ids, partition),
        kept_despite_failure=_kept(connection, declaration, registered, ids, partition),
        usage=(usage := Usage(*sent[2:])),
        use=_use(connection, registered, ids, partition, usage),
        batch_ids=batch_ids,
        waited_seconds=waited,
        preview=_preview(connection, declaration, partition),
        columns=columns_of(connection, answers),
        answers_in_table=row(connection, f"SELECT count(*) FROM {answers}")[0],
        **_left(connection, materializations, partition),
    )


def partitions_with_rows(connection: Connection, declaration: Declaration) -> list[str | None]:
    """Keys of all partitions that have an answer or a failure."""
    found = rows(
        connection,
        f"SELECT _partition FROM {declaration.answers.sql} "
        f"UNION SELECT _partition FROM {declaration.failures.sql} ORDER BY ALL",
    )
    return [partition for (partition,) in found]


_REQUESTS_HERE = """
    FROM {requests} AS q JOIN claude_batch.chunks AS c ON c.chunk_id = q._chunk_id
    WHERE c.materialization_id IN (SELECT unnest($ids::VARCHAR[])) AND c.state = 'landed'
        AND q._partition IS NOT DISTINCT FROM $partition
"""


def _sent(
    connection: Connection, registered: LedgerAsset, ids: Sequence[str], partition: str | None
) -> tuple[Any, ...]:
    first = _is_first(registered)
    found = row(
        connection,
        f"SELECT count(DISTINCT (q._chunk_id, q._ordinal)) FILTER ({first}), "
        f"count(DISTINCT (q._chunk_id, q._ordinal)) FILTER (q._attempt > 1 AND {first}), "
        "coalesce(sum(q._input_tokens), 0), coalesce(sum(q._output_tokens), 0), "
        "coalesce(sum(q._cache_read_tokens), 0), coalesce(sum(q._cache_write_tokens), 0), "
        f"CASE WHEN count(*) = 0 THEN 0 ELSE {sum_if_known('q._cost_usd')} END, "
        "count(DISTINCT (q._chunk_id, q._ordinal)) FILTER (q._cost_usd IS NULL "
        "AND q._input_tokens + q._output_tokens = 0 "
        "AND q._cache_read_tokens + q._cache_write_tokens = 0), "
        "count(*) FILTER (q._outcome = 'answer'), coalesce(sum(q._web_searches), 0)::BIGINT "
        + _REQUESTS_HERE.format(requests=registered.requests.sql),
        {"ids": list(ids), "partition": partition},
    )
    counts = [int(value) for value in found[:6]]
    return (*counts, *found[6:])


def _use(
    connection: Connection,
    registered: LedgerAsset,
    ids: Sequence[str],
    partition: str | None,
    usage: Usage,
) -> Use:
    """What the partition's requests came to, each by itself."""
    requests = (
        "SELECT sum(q._output_tokens) / (max(q._position) + 1) AS output, "
        "any_value(c.bytes / c.requests) AS bytes, "
        "sum(q._input_tokens + q._cache_read_tokens + q._cache_write_tokens) AS prompt, "
        "bool_or(q._outcome = 'max_tokens') AS is_cut_off "
        + _REQUESTS_HERE.format(requests=registered.requests.sql)
        + " AND q._input_tokens > 0 GROUP BY q._chunk_id, q._ordinal"
    )
    found = row(
        connection,
        "SELECT count(*), coalesce(avg(bytes), 0), coalesce(avg(prompt), 0), "
        "coalesce(quantile_disc(output, 0.5), 0), coalesce(quantile_disc(output, 0.99), 0), "
        f"count(*) FILTER (is_cut_off) FROM ({requests})",
        {"ids": list(ids), "partition": partition},
    )
    count, size, prompt, median, p99, cut_off = found
    return Use(int(count), size, prompt, round(median), round(p99), cut_off, usage.cost_usd)


def _is_first(registered: LedgerAsset, alike: str = "") -> str:
    """Whether a request ``q`` counts for this partition: for the first of those that share it."""
    return (
        f"NOT EXISTS (SELECT 1 FROM {registered.requests.sql} AS o WHERE o._chunk_id = q._chunk_id "
        f"AND o._ordinal = q._ordinal AND o._partition < q._partition {alike})"
    )


def _reused(
    connection: Connection,
    declaration: Declaration,
    materializations: Sequence[Materialization],
    partition: str | None,
) -> int:
    """Rows that an answer has served which was there before."""
    begun = min((each.started_at for each in materializations), default=None)
    (count,) = row(
        connection,
        f"SELECT count(*) FROM {declaration.answers.sql} WHERE _attempts = 0 "
        "AND _partition IS NOT DISTINCT FROM $partition AND _answered_at >= $begun",
        {"partition": partition, "begun": begun},
    )
    return int(count)


def _together(
    connection: Connection, registered: LedgerAsset, ids: Sequence[str], partition: str | None
) -> int:
    """Rows that were answered together with another one that asks the same."""
    (count,) = row(
        connection,
        "SELECT count(*) - count(DISTINCT (q._chunk_id, q._ordinal, q._position)) "
        f"FILTER ({_is_first(registered, 'AND o._position = q._position')}) "
        + _REQUESTS_HERE.format(requests=registered.requests.sql)
        + " AND q._outcome = 'answer'",
        {"ids": list(ids), "partition": partition},
    )
    return int(count)


def _batches(
    connection: Connection, registered: LedgerAsset, ids: Sequence[str], partition: str | None
) -> tuple[list[str], float]:
    """The batches that served a partition, and from the first sending to the last end."""
    found = rows(
        connection,
        "SELECT DISTINCT c.batch_id, c.sending_at, c.ended_at "
        + _REQUESTS_HERE.format(requests=registered.requests.sql)
        + " ORDER BY c.sending_at",
        {"ids": list(ids), "partition": partition},
    )
    begun = [moment for _, moment, _ in found if moment]
    ended = [moment for _, _, moment in found if moment]
    waited = (max(ended) - min(begun)).total_seconds() if begun and ended else 0.0
    return [str(batch_id) for batch_id, _, _ in found], max(0.0, waited)


def _kept(
    connection: Connection,
    declaration: Declaration,
    registered: LedgerAsset,
    ids: Sequence[str],
    partition: str | None,
) -> int:
    """Rows whose refresh failed while their earlier answer stayed."""
    keys = " AND ".join(f"a.{n} = q.{n}" for n in map(quote_identifier, declaration.row_key))
    (kept,) = row(
        connection,
        f"SELECT count(*) FROM {declaration.answers.sql} AS a WHERE "
        "a._partition IS NOT DISTINCT FROM $partition AND EXISTS (SELECT 1 "
        + _REQUESTS_HERE.format(requests=registered.requests.sql)
        + f" AND {keys} AND q._outcome <> 'answer' AND a._answered_at < c.landed_at "
        "AND NOT a._batch_id IN (SELECT batch_id "
        "FROM claude_batch.chunks WHERE materialization_id IN (SELECT unnest($ids::VARCHAR[])) "
        "AND batch_id IS NOT NULL))",
        {"ids": list(ids), "partition": partition},
    )
    return int(kept)


def _preview(
    connection: Connection, declaration: Declaration, partition: str | None
) -> list[dict[str, Any]]:
    """The first answers, their key and output columns as short text."""
    names = [*declaration.row_key, *(column.name for column in declaration.output.columns)]
    columns = ", ".join(
        f"left(CAST({quote_identifier(name)} AS VARCHAR), {_PREVIEW_CHARACTERS})" for name in names
    )
    found = rows(
        connection,
        f"SELECT {columns} FROM {declaration.answers.sql} "
        f"WHERE _partition IS NOT DISTINCT FROM $partition LIMIT {PREVIEW_ROWS}",
        {"partition": partition},
    )
    return [dict(zip(names, values, strict=True)) for values in found]
