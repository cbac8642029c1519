"""A declaration → an asset: checks what was declared, and wires the engine to Dagster."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from hashlib import sha256
from numbers import Integral, Number
from typing import Any, Final, Literal, cast

import dagster as dg
from anthropic.types.model_param import ModelParam
from pydantic import BaseModel

from dagster_claude_batch import caps, cost, finishing, partitions
from dagster_claude_batch.batch_asset import BatchAsset, register
from dagster_claude_batch.chunking import MAX_BATCH_REQUESTS, SizeLimits
from dagster_claude_batch.config import ClaudeBatchConfig
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import DeclarationError
from dagster_claude_batch.output import Output
from dagster_claude_batch.preparing import refuse_collisions
from dagster_claude_batch.request.declaring import (
    DeclaredPrompt,
    DeclaredSystem,
    may_cite,
    request_shape,
)
from dagster_claude_batch.request.packing import packing
from dagster_claude_batch.request.shape import forces_tool
from dagster_claude_batch.source import parse_query, parse_table_name
from dagster_claude_batch.tables import TableName
from dagster_claude_batch.upstream import SourceLike, UpstreamLike, find_source, require_columns
from dagster_claude_batch.waiting import materialize


def build_claude_batch_asset(  # noqa: PLR0913  # a declaration is made of its arguments
    key: str | Sequence[str] | dg.AssetKey,
    *,
    source: SourceLike | None = None,
    query: str | None = None,
    row_key: str | Sequence[str],
    prompt: DeclaredPrompt,
    output: type[BaseModel] | None = None,
    model: ModelParam = "claude-haiku-5-5",
    max_tokens: int = 1024,
    system: DeclaredSystem = None,
    cache: Literal["5m", "1h"] | None = None,
    params: Mapping[str, Any] | None = None,
    include: str | Sequence[str] = (),
    table: str | None = None,
    partitions_def: dg.PartitionsDefinition | None = None,
    partition_expr: partitions.PartitionExpr = None,
    deps: Sequence[UpstreamLike] | None = None,
    chunk_size: int = 5_000,
    rows_per_request: int = 1,
    deduplicate: bool = True,
    max_attempts: int = 3,
    max_failure_rate: float = 0.01,
    max_cost_usd: float | None = None,
    max_wait_hours: float | None = None,
    prices: Mapping[str, Decimal | float | str] | None = None,
    pilot: int | None = None,
    delete_remote_results: bool = False,
    wait: Literal["sensor", "run"] = "sensor",
    duckdb_resource: str = "duckdb",
    claude_resource: str = "claude_batch",
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    group_name: str | None = None,
    owners: Sequence[str] | None = None,
    kinds: set[str] | None = None,
    code_version: str | None = None,
    automation_condition: dg.AutomationCondition[Any] | None = None,
    freshness_policy: dg.FreshnessPolicy | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
) -> dg.AssetsDefinition:
    """Build an asset whose rows are Claude's answers to the rows of a DuckDB table.

    Materializing a partition sends its new, changed and failed rows in batches, waits without
    occupying anything, and writes the answers to ``<schema>.<asset>`` and the rows that failed to
    ``<schema>.<asset>_failures``, where the schema is the key's prefix or ``main``.

    Args:
        key: The asset's key; its last part names the tables.
        source: What is asked about: an upstream asset, whose table is read, an asset key, or the
            name of a table. Either this or ``query``.
        query: A SELECT to ask about instead.
        row_key: The column or columns that identify a row within its partition.
        prompt: A template in which ``{{ column }}`` stands for a column of the source; all else
            is text. Or a list of parts: `Text`, `Image` and `Document`. A row with NULL in one of
            their columns is not asked, and fails as ``invalid_row``. Or, slower, a function of a
            row (a dict of all columns) that returns text, a list of content blocks, or a dict of
            parameters with ``messages``; what it returns must depend on the row alone, and it may
            be called by several threads at once.
        output: A Pydantic model: each answer is checked by it, and its fields become columns.
            Without it, the answer's text is the column ``response``.
        model: The model's id.
        max_tokens: The most tokens of one answer. A truncated one is asked again with twice as
            many, up to the model's own limit.
        system: The system prompt: text or a list of text blocks, in which ``{{ column }}`` stands
            for a column, too.
        cache: Cache what all rows share, for so long: the tools, the system prompt, examples,
            and the text with which the prompt begins. Hits are the API's best effort.
        params: Any other parameter of the Messages API, checked by the SDK's types. ``messages``
            are examples that stand before the row's own. Where ``tool_choice`` makes the model use
            a tool, its input is the answer; if the tool has no ``input_schema``, it gets that of
            ``output``.
        include: Column or columns of the source to carry over beside the answers.
        table: Another name for the answers table, ``table`` or ``schema.table``.
        partitions_def: How the asset is partitioned.
        partition_expr: The column or SQL expression that is compared with the partition key, or
            with the start and end of the time window; for multi-partitions a mapping from
            dimension to expression.
        deps: Further upstream assets.
        chunk_size: Requests in a batch, 100,000 at most.
        rows_per_request: Ask so many rows in one request, which says only once what they share.
            Each row's answer is checked by itself, and a row without a valid one is asked alone
            next. ``max_tokens`` is for each row. Not with functions, examples or tools.
        deduplicate: Ask rows that ask the same only once, for all partitions of the asset; the
            answer serves them all, later ones too.
        max_attempts: How often a row is sent within one materialization.
        max_failure_rate: Share of rows, from 0 to 1, that may fail in a partition before it does.
        max_cost_usd: The most that one materialization may spend, in USD, retries included. What is
            out counts as the most that it can cost: ``max_tokens`` for each answer, and a token for
            each byte of text. What does not fit is not sent until that has turned out cheaper; if
            it still does not, the partitions with rows that are left fail. The launchpad may give
            another one.
        max_wait_hours: After so long, a materialization ends with what it has: what is still out
            is cancelled, and rows without an answer fail as ``expired``.
        prices: What you pay in a batch, if not the public price: USD for a million tokens by kind,
            ``input`` and ``output``, and if they are not the usual parts of ``input``,
            ``cache_read``, ``cache_write_5m`` and ``cache_write_1h``; ``web_search`` for 1,000.
        pilot: Send only so many rows at first, and the rest if no larger share of them fails than
            ``max_failure_rate``.
        delete_remote_results: Delete each batch at Anthropic, with what was asked and answered,
            once its answers are in the tables and no run waits for it any more. One of whose
            results a line was missing or not understood stays. Otherwise all stay for 29 days.
        wait: Who waits: ``"sensor"``, with no process and no run slot, or the ``"run"`` itself.
        duckdb_resource: Key of the resource that opens the DuckDB database.
        claude_resource: Key of the `ClaudeBatchResource`.
        description: The asset's description, else one is made. This and all arguments that follow
            are as in `dagster.asset`.
        metadata: Further definition metadata.
        tags: Tags of the asset.
        group_name: The asset's group.
        owners: The asset's owners.
        kinds: Instead of ``{"anthropic", "duckdb"}``.
        code_version: The asset's code version.
        automation_condition: When the asset is to be materialized by itself.
        freshness_policy: When the asset counts as stale.
        backfill_policy: How a backfill becomes runs.
        retry_policy: Retries of the op within a run.
        op_tags: Tags of the op.
        pool: The op's own pool.

    Raises:
        DeclarationError: An argument cannot work; the message names it, and the cure.
    """
    asset_key = dg.AssetKey.from_coercible(key)
    asset = asset_key.to_user_string()
    columns = _checked_columns(
        asset, "row_key", (row_key,) if isinstance(row_key, str) else tuple(row_key)
    )
    wanted = (include,) if isinstance(include, str) else tuple(include)
    included = tuple(name for name in wanted if name not in columns)
    described = Output.from_model(output, asset=asset)
    if may_cite(prompt):
        described = described.citing()
    refuse_collisions(asset, [*columns, *included], [each.name for each in described.columns])
    answers = _answers_table(asset_key, table)
    candidates, label, upstream = find_source(asset, source, query)
    shape = request_shape(
        asset,
        model=model,
        prompt=prompt,
        system=system,
        params=params,
        cache=cache,
        output=described,
    )
    _at_least_one(asset, "rows_per_request", rows_per_request)
    require_columns(asset, source, {"row_key": columns, "prompt": shape.columns, "include": wanted})
    declaration = Declaration(
        asset=asset,
        answers=answers,
        source_label=label,
        source_candidates=candidates,
        query_relation=None if query is None else parse_query(asset, query),
        row_key=columns,
        include=included,
        partition_exprs=partitions.expressions(asset, partitions_def, partition_expr),
        output=replace(described, is_of_tool=forces_tool(shape.params)),
        shape=shape,
        max_tokens=_at_least_one(asset, "max_tokens", max_tokens),
        max_attempts=_at_least_one(asset, "max_attempts", max_attempts),
        max_failure_rate=_share(asset, max_failure_rate),
        max_wait=_hours(asset, max_wait_hours),
        deduplicate=deduplicate,
        packing=(
            packing(asset, shape, described, rows_per_request) if rows_per_request > 1 else None
        ),
        pilot=None if pilot is None else _at_least_one(asset, "pilot", pilot),
        prices=_prices(asset, prices),
        max_cost_usd=_usd(asset, max_cost_usd),
        delete_remote_results=delete_remote_results,
        limits=SizeLimits(_chunk_size(asset, chunk_size)),
        workspace=claude_resource,
    )
    _refuse_uncappable(declaration)
    spec = dg.AssetSpec(
        asset_key,
        deps=[*upstream, *(deps or ())],
        skippable=True,
        description=description or _description(declaration),
        metadata={**_metadata(declaration, partitions_def), **(metadata or {})},
        tags=tags,
        group_name=group_name,
        owners=owners,
        kinds=kinds if kinds is not None else {"anthropic", "duckdb"},
        code_version=code_version,
        automation_condition=automation_condition,
        freshness_policy=freshness_policy,
        partitions_def=partitions_def,
    )
    batch = BatchAsset(
        asset_key,
        declaration,
        partitions_def,
        duckdb_resource,
        claude_resource,
        _waiter(asset, wait),
    )

    @dg.multi_asset(
        name=_op_name(asset_key),
        specs=[spec],
        check_specs=finishing.check_specs(asset_key, declaration),
        can_subset=True,
        required_resource_keys={duckdb_resource, claude_resource},
        backfill_policy=backfill_policy,
        retry_policy=retry_policy,
        op_tags=op_tags,
        pool=pool,
    )
    def compute(context: dg.AssetExecutionContext, config: ClaudeBatchConfig) -> Iterator[Any]:
        yield from materialize(context, config, batch)

    register(compute, batch)
    return compute


def _op_name(key: dg.AssetKey) -> str:
    """A valid name for the op; keys that differ only in odd characters stay apart."""
    plain = "__".join(key.path)
    name = re.sub(r"[^A-Za-z0-9_]", "_", plain)
    return name if name == plain else f"{name}_{sha256(plain.encode()).hexdigest()[:8]}"


def _answers_table(key: dg.AssetKey, table: str | None) -> TableName:
    schema = key.path[-2] if len(key.path) > 1 else "main"
    if table is None:
        return TableName(key.path[-1], schema)
    named = parse_table_name(table)
    if named is None:
        raise DeclarationError(
            key.to_user_string(),
            "table",
            f"{table!r} is no table name.",
            cure='Write `table` or `schema.table`, with "double quotes" round odd names.',
        )
    return TableName(named.name, named.schema or schema, named.database)


def _checked_columns(asset: str, argument: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    folded = [name.casefold() for name in columns]
    if not columns or len(set(folded)) < len(columns):
        raise DeclarationError(
            asset, argument, "one or more different columns are needed.", cure="Name them."
        )
    return columns


def _waiter(asset: str, wait: object) -> Literal["sensor", "run"]:
    if wait in {"sensor", "run"}:
        return cast('Literal["sensor", "run"]', wait)
    raise DeclarationError(
        asset, "wait", f"{wait!r} waits for nothing.", cure='Use "sensor" or "run".'
    )


def _require_number(asset: str, argument: str, value: object, kind: type = Number) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        which = "whole number" if kind is Integral else "number"
        raise DeclarationError(asset, argument, f"{value!r} is no {which}.", cure=f"Use a {which}.")


def _at_least_one(asset: str, argument: str, value: int) -> int:
    _require_number(asset, argument, value, Integral)
    if value < 1:
        raise DeclarationError(asset, argument, f"{value} is too little.", cure="Use 1 or more.")
    return value


def _prices(asset: str, prices: Mapping[str, Decimal | float | str] | None) -> cost.Prices | None:
    try:
        return None if prices is None else cost.declared_prices(prices)
    except ValueError as error:
        cure = "Give USD for a million tokens in a batch: {'input': 0.05, 'output': 0.25}."
        raise DeclarationError(asset, "prices", f"{error}.", cure=cure) from None


def _usd(asset: str, value: float | None) -> Decimal | None:
    if value is None:
        return None
    _require_number(asset, "max_cost_usd", value)
    if not 0 < value < math.inf:
        raise DeclarationError(asset, "max_cost_usd", f"{value} is no cap.", cure="Use USD.")
    return Decimal(str(value))


def _refuse_uncappable(declaration: Declaration) -> None:
    problem = caps.why_not(declaration)
    if declaration.max_cost_usd is not None and problem is not None:
        cure = "Leave it out, or change that."
        raise DeclarationError(declaration.asset, "max_cost_usd", f"{problem}.", cure=cure)


def _hours(asset: str, value: float | None) -> timedelta | None:
    if value is None:
        return None
    _require_number(asset, "max_wait_hours", value)
    if not 0 < value <= _MOST_HOURS:
        raise DeclarationError(
            asset,
            "max_wait_hours",
            f"{value} is no time to wait.",
            cure=f"Use more than 0 and at most {_MOST_HOURS}, after which results are gone.",
        )
    return timedelta(hours=value)


_MOST_HOURS: Final = 29 * 24


def _chunk_size(asset: str, value: int) -> int:
    _require_number(asset, "chunk_size", value, Integral)
    if not 1 <= value <= MAX_BATCH_REQUESTS:
        raise DeclarationError(
            asset,
            "chunk_size",
            f"{value:,} requests do not make a batch.",
            cure=f"Use 1 to {MAX_BATCH_REQUESTS:,}.",
        )
    return value


def _share(asset: str, value: float) -> float:
    _require_number(asset, "max_failure_rate", value)
    if not 0 <= value <= 1:
        raise DeclarationError(
            asset, "max_failure_rate", f"{value} is no share.", cure="Use 0 to 1: 0.01 is 1 %."
        )
    return value


def _description(declaration: Declaration) -> str:
    return (
        f"What {declaration.shape.model} answers about each row of {declaration.source_label}, "
        f"asked in message batches. Rows without an answer stand in {declaration.failures}."
    )


def _metadata(
    declaration: Declaration, partitions_def: dg.PartitionsDefinition | None
) -> dict[str, Any]:
    """Definition metadata that lets DuckDB IO managers find and read the answers."""
    metadata: dict[str, Any] = {
        "schema": declaration.answers.schema,
        "dagster/table_name": str(declaration.answers),
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(column.name, column.type, column.description)
                for column in declaration.output.columns
            ]
        ),
        "failures_table": str(declaration.failures),
        "model": declaration.shape.model,
    }
    expression = partitions.partition_expr_of_answers(partitions_def)
    if expression is not None:
        metadata["partition_expr"] = expression
    return metadata
