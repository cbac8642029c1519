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
