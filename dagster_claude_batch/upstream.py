"""What an asset is asked about: an upstream asset, its table, and the columns that it has."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import dagster as dg

from dagster_claude_batch.batch_asset import batch_asset
from dagster_claude_batch.errors import DeclarationError
from dagster_claude_batch.source import parse_table_name
from dagster_claude_batch.tables import ANSWER_COLUMNS, TableName

SourceLike: TypeAlias = (
    dg.AssetsDefinition | dg.AssetSpec | dg.SourceAsset | dg.AssetKey | Sequence[str] | str
)

UpstreamLike: TypeAlias = SourceLike | dg.AssetDep
"""What Dagster takes for one of an asset's `deps`; its own name for that is not public."""


def find_source(
    asset: str, source: SourceLike | None, query: str | None
) -> tuple[tuple[TableName, ...], str, list[Any]]:
    """Where to look for the source's table, what to call it, and which upstream assets it is."""
    if (source is None) == (query is None):
        raise DeclarationError(
            asset, "source", "exactly one of `source` and `query` is needed.", cure="Pass one."
        )
    if source is None:
        return (), "query", []
    if isinstance(source, str):
        named = parse_table_name(source)
        if named is None:
            raise DeclarationError(
                asset,
                "source",
                f"{source!r} is no table name.",
                cure='Write `table` or `schema.table`, with "double quotes" round odd names.',
            )
        return (named,), str(named), []
    key, metadata = _key_and_metadata(asset, source)
    return (
        _tables_of(key, metadata),
        key.to_user_string(),
        [source if not isinstance(source, Sequence) else key],
    )


def require_columns(
    asset: str, source: SourceLike | None, named: Mapping[str, Sequence[str]]
) -> None:
    """Check the columns that arguments name, where the source's definition says which it has.

    Raises:
        DeclarationError: One is not there.
    """
    known = None if source is None else _known_columns(source)
    folded = {name.casefold() for name in known or ()}
    for argument, names in named.items() if known is not None else ():
        for name in names:
            if name.casefold() not in folded:
                raise DeclarationError(
                    asset,
                    argument,
                    f"the source has no column {name!r}, by its `dagster/column_schema`.",
                    cure=f"Use one of {', '.join(known or ())}.",
                )


def _known_columns(source: SourceLike) -> Sequence[str] | None:
    """Names of the columns of an upstream asset, where its definition says them."""
    if isinstance(source, dg.AssetsDefinition) and (ours := batch_asset(source)) is not None:
        declaration = ours.declaration
        output = (column.name for column in declaration.output.columns)
        return [*declaration.row_key, *declaration.include, *output, *ANSWER_COLUMNS]
    if not isinstance(source, dg.AssetsDefinition | dg.AssetSpec | dg.SourceAsset):
        return None
    _, metadata = _key_and_metadata("", source)
    declared = metadata.get("dagster/column_schema")
    schema = getattr(declared, "schema", declared)
    return [each.name for each in schema.columns] if isinstance(schema, dg.TableSchema) else None


def _key_and_metadata(
    asset: str,
    source: dg.AssetsDefinition | dg.AssetSpec | dg.SourceAsset | dg.AssetKey | Sequence[str],
) -> tuple[dg.AssetKey, Mapping[str, Any]]:
    if isinstance(source, dg.AssetsDefinition):
        if len(source.keys) != 1:
            raise DeclarationError(
                asset,
                "source",
                "this definition has several assets.",
                cure="Pass the `AssetKey` of one of them.",
            )
        return source.key, source.metadata_by_key.get(source.key, {})
    if isinstance(source, dg.AssetSpec | dg.SourceAsset):
        return source.key, source.metadata
    return dg.AssetKey.from_coercible(source), {}


def _tables_of(key: dg.AssetKey, metadata: Mapping[str, Any]) -> tuple[TableName, ...]:
    """Where the table of an asset is: as its metadata says, else as IO managers place it."""
    declared = getattr(
        metadata.get("dagster/table_name"), "value", metadata.get("dagster/table_name")
    )
    if isinstance(declared, str) and (named := parse_table_name(declared)):
        return (named,)
    schema = getattr(metadata.get("schema"), "value", metadata.get("schema"))
    name = key.path[-1]
    if isinstance(schema, str):
        return (TableName(name, schema),)
    if len(key.path) > 1:
        return (TableName(name, key.path[-2]),)
    return (TableName(name, "main"), TableName(name, "public"))
