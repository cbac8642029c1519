"""The tables of the ledger, version by version, and what its views show."""

from typing import Final

from dagster_claude_batch.cost import sum_if_known

# Each entry leads from the version before it to its own; the first one creates the ledger.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE claude_batch.assets (
            asset_id INTEGER, asset VARCHAR, row_key VARCHAR[], chunks BIGINT)""",
        "CREATE TABLE claude_batch.workspaces (workspace VARCHAR, sends BIGINT)",
        """CREATE TABLE claude_batch.materializations (
            materialization_id VARCHAR, asset VARCHAR, partitions VARCHAR[], state VARCHAR,
            config VARCHAR, model_max_tokens BIGINT,
            started_at TIMESTAMP WITH TIME ZONE, ended_at TIMESTAMP WITH TIME ZONE)""",
        """CREATE TABLE claude_batch.runs (
            run_id VARCHAR, asset VARCHAR, materialization_id VARCHAR,
            attached_at TIMESTAMP WITH TIME ZONE)""",
        """CREATE TABLE claude_batch.chunks (
            chunk_id BIGINT, materialization_id VARCHAR, asset VARCHAR, workspace VARCHAR,
            state VARCHAR, adopted BOOLEAN, attempt INTEGER, max_tokens BIGINT, requests BIGINT,
            bytes BIGINT,
            nonce VARCHAR, body_sha256 VARCHAR, batch_id VARCHAR, run_id VARCHAR,
            planned_at TIMESTAMP WITH TIME ZONE, sending_at TIMESTAMP WITH TIME ZONE,
            submitted_at TIMESTAMP WITH TIME ZONE, ended_at TIMESTAMP WITH TIME ZONE,
            landed_at TIMESTAMP WITH TIME ZONE, succeeded BIGINT, errored BIGINT,
            canceled BIGINT, expired BIGINT)""",
        """CREATE TABLE claude_batch.departed (
            asset VARCHAR, partition VARCHAR, row_key VARCHAR, request_hash VARCHAR,
            answer VARCHAR, departed_at TIMESTAMP WITH TIME ZONE)""",
    ),
    (
        "ALTER TABLE claude_batch.materializations ADD COLUMN halted_because VARCHAR",
        "ALTER TABLE claude_batch.chunks ADD COLUMN is_copy BOOLEAN DEFAULT false",
    ),
    (
        "ALTER TABLE claude_batch.chunks ADD COLUMN doubted_at TIMESTAMP WITH TIME ZONE",
        "ALTER TABLE claude_batch.runs ADD COLUMN launch VARCHAR",
        "ALTER TABLE claude_batch.runs ADD COLUMN joined BOOLEAN DEFAULT false",
        "ALTER TABLE claude_batch.assets ADD COLUMN tables VARCHAR[]",
    ),
    (
        "ALTER TABLE claude_batch.materializations ADD COLUMN awaits BIGINT[]",
        "ALTER TABLE claude_batch.materializations ADD COLUMN pilot VARCHAR",
        "ALTER TABLE claude_batch.chunks ADD COLUMN is_packed BOOLEAN DEFAULT false",
        # Until now, this was told by the clocks of the runs.
        """UPDATE claude_batch.materializations AS m SET awaits = (
            SELECT list(c.chunk_id) FROM claude_batch.chunks AS c
            WHERE c.asset = m.asset AND c.materialization_id <> m.materialization_id
                AND NOT c.is_copy AND c.sending_at < m.started_at
                AND (c.state IN ('sending', 'submitted') OR c.landed_at >= m.started_at))
        WHERE m.state = 'open' AND m.materialization_id IN (
            SELECT materialization_id FROM claude_batch.chunks WHERE state = 'elsewhere')""",
    ),
    (
        "ALTER TABLE claude_batch.chunks ADD COLUMN model VARCHAR",
        "ALTER TABLE claude_batch.chunks ADD COLUMN most_usd DECIMAL(38, 12)",
        "ALTER TABLE claude_batch.chunks ADD COLUMN cost_usd DECIMAL(38, 12)",
        "ALTER TABLE claude_batch.materializations ADD COLUMN capped VARCHAR",
        "ALTER TABLE claude_batch.materializations ADD COLUMN left_partitions VARCHAR[]",
        "ALTER TABLE claude_batch.materializations ADD COLUMN left_rows BIGINT[]",
    ),
    # And `_fingerprint` of the requests.
    (
        "ALTER TABLE claude_batch.chunks ADD COLUMN deleted_at TIMESTAMP WITH TIME ZONE",
        """CREATE TABLE claude_batch.pruned (
            day DATE, asset VARCHAR, partition VARCHAR, model VARCHAR, outcome VARCHAR,
            is_second_copy BOOLEAN, rows BIGINT, requests BIGINT, input_tokens BIGINT,
            output_tokens BIGINT, cache_read_tokens BIGINT, cache_write_tokens BIGINT,
            cost_usd DECIMAL(38, 12), rows_of_unknown_cost BIGINT)""",
    ),
)

_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_SUMS = ", ".join(f"sum({name})::BIGINT AS {name}" for name in _TOKENS)

_SPENT: Final = f"""
    SELECT CAST(make_timestamp(epoch_us(coalesce(c.sending_at, c.landed_at))) AS DATE) AS day,
        r.asset, r.partition, c.model, r.outcome, c.is_copy AS is_second_copy, count(*) AS rows,
        count(DISTINCT (r.chunk_id, r.ordinal)) AS requests, {_SUMS},
        {sum_if_known("r.cost_usd")} AS cost_usd,
        count(*) FILTER (r.cost_usd IS NULL) AS rows_of_unknown_cost
    FROM claude_batch.requests AS r JOIN claude_batch.chunks AS c ON c.chunk_id = r.chunk_id
    WHERE c.state = 'landed' AND {{condition}} GROUP BY ALL"""

PRUNED: Final = _SPENT.format(condition="list_contains($chunk_ids::BIGINT[], c.chunk_id)")
"""What was spent for some chunks, as `claude_batch.pruned` keeps it when their requests go."""

SPENDING: Final = f"""
    SELECT day, asset, partition, model, outcome, is_second_copy, sum(rows)::BIGINT AS rows,
        sum(requests)::BIGINT AS requests, {_SUMS}, {sum_if_known("cost_usd")} AS cost_usd,
        sum(rows_of_unknown_cost)::BIGINT AS rows_of_unknown_cost
    FROM ({_SPENT.format(condition="true")}
        UNION ALL BY NAME SELECT * FROM claude_batch.pruned) GROUP BY ALL"""
"""What was spent on which day (UTC, of sending), for each kind of outcome; see the README."""

DESCRIPTIONS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "materializations": (
        "One asking for a set of partitions, from the first run that plans it until it is over.",
        {
            "materialization_id": "A UUID.",
            "asset": "The asset's key, as `snippets/sentiment`.",
            "partitions": "Its partition keys; one NULL without partitions.",
            "state": "`open`, `done` or `cancelled`.",
            "config": "What the run config asked for, as JSON.",
            "model_max_tokens": "The most tokens of an answer that the model can give, if known.",
            "started_at": "When it was planned first.",
            "ended_at": "When it was over.",
            "halted_because": "What the API said of the account, if it refused what was sent.",
            "awaits": "Chunks of others that had rows of its partitions out when it began.",
            "pilot": "Why nothing more was sent than the pilot, if so.",
            "capped": "The cap that kept rows from being sent, if one did.",
            "left_partitions": "Partitions with such rows.",
            "left_rows": "How many these are, in the same order.",
        },
    ),
    "runs": (
        "Which Dagster runs work on which materializations.",
        {
            "run_id": "The run's id.",
            "asset": "The asset's key.",
            "materialization_id": "What it works on.",
            "attached_at": "Since when.",
            "launch": "The first run of the launch: those held for it and its retries share it.",
            "joined": "Whether the launch came later than the materialization, and catches up.",
        },
    ),
    "chunks": (
        "Requests that are sent as one Message Batch, and what became of it.",
        {
            "chunk_id": "Unique in the ledger.",
            "materialization_id": "The materialization that answers for it.",
            "asset": "The asset's key.",
            "workspace": "The key of the Claude resource.",
            "state": "`planned`, `sending` (a batch may exist), `submitted`, `landed`; `dissolved` "
            "before it was sent, `given_up` when no batch was found, `elsewhere` for rows that "
            "others have out, `held_back` behind a pilot.",
            "adopted": "Whether another materialization has taken it over.",
            "attempt": "How often its rows have been sent with it: 1 the first time.",
            "max_tokens": "The most tokens of each of its answers.",
            "requests": "How many requests it has.",
            "bytes": "Size of their JSON.",
            "nonce": "Begins its custom ids, by which its batch is told from all others.",
            "body_sha256": "Of the request body.",
            "batch_id": "The Message Batch.",
            "run_id": "The run that sent it.",
            "planned_at": "When it was planned.",
            "sending_at": "When its sending began.",
            "submitted_at": "When its batch was known.",
            "ended_at": "When its batch had ended, by the API.",
            "landed_at": "When its results were written to the tables.",
            "succeeded": "By the API's `request_counts`.",
            "errored": "The same.",
            "canceled": "The same.",
            "expired": "The same.",
            "is_copy": "Whether it is a second batch of requests that another one answers too.",
            "doubted_at": "When it turned out that nobody knew whether a batch had been created.",
            "is_packed": "Whether several rows share a request.",
            "model": "The model it was sent to.",
            "most_usd": "The most that it can cost; NULL without a price.",
            "cost_usd": "What it did cost; NULL until it has landed, or if that is unknown.",
            "deleted_at": "When its batch was deleted at Anthropic.",
        },
    ),
    "requests": (
        "A view of all that was planned and sent, row by row; `claude_batch_prune` shortens it.",
        {
            "asset": "The asset's key.",
            "chunk_id": "The chunk.",
            "ordinal": "The request's place in it, which ends its custom id.",
            "position": "The row's place in a request that several rows share.",
            "partition": "The partition key.",
            "request_hash": "Identifies what was asked.",
            "attempt": "Which attempt of the row it is.",
            "outcome": "`answer`, or the error's type; NULL until it has landed.",
            "retryable": "Whether another attempt may end differently.",
            "web_searches": "Searches that are billed.",
            "input_tokens": "The row's share, without cached ones.",
            "output_tokens": "The row's share.",
            "cache_read_tokens": "The row's share.",
            "cache_write_tokens": "The row's share.",
            "cost_usd": "The row's share, in USD.",
            "row_key": "The row's key, as a JSON array.",
        },
    ),
    "spending": (
        "A view of all that was landed, by day, asset, partition, model and outcome.",
        {
            "day": "Of sending, UTC.",
            "asset": "The asset's key.",
            "partition": "The partition key.",
            "model": "The model.",
            "outcome": "`answer`, or why there is none, as `_error_type`.",
            "is_second_copy": "Whether it is of a batch that one call made twice.",
            "rows": "How many rows.",
            "requests": "In how many requests.",
            "input_tokens": "Their sum, without cached ones.",
            "output_tokens": "Their sum.",
            "cache_read_tokens": "Their sum.",
            "cache_write_tokens": "Their sum.",
            "cost_usd": "Their sum, in USD; NULL if that of any of these rows is unknown.",
            "rows_of_unknown_cost": "How many rows that are.",
        },
    ),
    "pruned": (
        "What was spent for requests that were pruned: part of `spending`, and like it.",
        {},
    ),
    "departed": (
        "Answers whose rows have left the source, for the day on which these return.",
        {
            "asset": "The asset's key.",
            "partition": "The partition key.",
            "row_key": "The row's key, as a JSON array.",
            "request_hash": "Identifies what was asked.",
            "answer": "The row of the answers table, as JSON.",
            "departed_at": "When it left.",
        },
    ),
    "assets": (
        "The assets that have ever been planned.",
        {
            "asset_id": "Names the table of its requests, `claude_batch.requests_<asset_id>`.",
            "asset": "The asset's key.",
            "row_key": "Its row key's columns.",
            "chunks": "How many it has had. Planning changes it, so that two cannot plan at once.",
            "tables": "The tables that it writes, which no other asset may.",
        },
    ),
    "workspaces": (
        "The Claude resources.",
        {
            "workspace": "The key of the resource.",
            "sends": "Changed by each sending, so that two cannot fill the same room.",
        },
    ),
    "ledger": (
        "The ledger itself.",
        {
            "version": "Its version; newer code brings it up to date.",
            "assets": "How many assets it has had.",
            "migrated_at": "Since when it has this version.",
        },
    ),
}
"""Of the ledger's tables and views, and of their columns, for people."""
