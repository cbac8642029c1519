"""Dagster's partitions ↔ rows of the source, and back for who reads the answers."""

from collections.abc import Mapping, Sequence

import dagster as dg

from dagster_claude_batch.errors import DeclarationError
from dagster_claude_batch.source import Equals, PartitionSlice, Within

PartitionExpr = str | Mapping[str, str] | None


def expressions(
    asset: str, partitions_def: dg.PartitionsDefinition | None, partition_expr: PartitionExpr
) -> tuple[str, ...]:
    """One SQL expression a dimension, in Dagster's order of the dimensions.

    Raises:
        DeclarationError: The expression does not fit the partitions.
    """
    if partitions_def is None:
        if partition_expr is not None:
            raise DeclarationError(
                asset,
                "partition_expr",
                "the asset has no partitions.",
                cure="Give it a `partitions_def`, or leave `partition_expr` out.",
            )
        return ()
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return _of_dimensions(asset, partitions_def, partition_expr)
    if not isinstance(partition_expr, str) or not partition_expr.strip():
        raise DeclarationError(
            asset,
            "partition_expr",
            "a partitioned asset needs to know which rows belong to a partition.",
            cure="Name the column, or an SQL expression, that is compared with the partition key "
            "or with the time window.",
        )
    return (partition_expr,)


def _of_dimensions(
    asset: str, partitions_def: dg.MultiPartitionsDefinition, partition_expr: PartitionExpr
) -> tuple[str, ...]:
    names = [dimension.name for dimension in partitions_def.partitions_defs]
    if not isinstance(partition_expr, Mapping) or set(partition_expr) != set(names):
        raise DeclarationError(
            asset,
            "partition_expr",
            f"the asset has the partition dimensions {', '.join(names)}.",
            cure="Pass a mapping from each of them to a column or an SQL expression.",
        )
    return tuple(partition_expr[name] for name in names)


def slices(
    partitions_def: dg.PartitionsDefinition | None, keys: Sequence[str | None]
) -> list[PartitionSlice]:
    """Say which rows partition keys stand for. A dynamic key may have been deleted meanwhile."""
    if partitions_def is None:
        return [PartitionSlice(None)]
    return [_slice(partitions_def, key) for key in keys if key is not None]


def _slice(partitions_def: dg.PartitionsDefinition, key: str) -> PartitionSlice:
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        parts = partitions_def.get_partition_key_from_str(key).keys_by_dimension
        return PartitionSlice(
            key,
            tuple(
                _bound(dimension.partitions_def, parts[dimension.name])
                for dimension in partitions_def.partitions_defs
            ),
        )
    return PartitionSlice(key, (_bound(partitions_def, key),))


def _bound(partitions_def: dg.PartitionsDefinition, key: str) -> Equals | Within:
    if isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        window = partitions_def.time_window_for_partition_key(key)
        return Within(window.start, window.end)
    return Equals(key)


def partition_expr_of_answers(
    partitions_def: dg.PartitionsDefinition | None,
) -> str | dict[str, str] | None:
    """The `partition_expr` with which Dagster's DuckDB IO managers read a partition's answers."""
    if partitions_def is None:
        return None
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return {
            dimension.name: _typed(
                dimension.partitions_def, f"split_part(_partition, '|', {number})"
            )
            for number, dimension in enumerate(partitions_def.partitions_defs, start=1)
        }
    return _typed(partitions_def, "_partition")


def _typed(partitions_def: dg.PartitionsDefinition, column: str) -> str:
    if isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        literal = partitions_def.fmt.replace("'", "''")
        return f"strptime({column}, '{literal}')"
    return column
