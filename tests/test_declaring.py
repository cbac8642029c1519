"""Wrong declarations fail when the definitions load, and say what to do."""

from typing import Any

import dagster as dg
import pytest
from pydantic import BaseModel

from dagster_claude_batch import Document, Image, Text, build_claude_batch_asset
from dagster_claude_batch.batch_asset import batch_asset
from dagster_claude_batch.errors import ColumnCollisionError, DeclarationError


class Rated(BaseModel):
    stars: int


async def _later(row: dict[str, Any]) -> str:
    return str(row)


PICTURE = {"type": "image", "source": {"type": "url", "url": "https://example.org/it.png"}}
EXAMPLES = [{"role": "user", "content": "Rate it"}, {"role": "assistant", "content": "1"}]
FORCED = {"tools": [{"name": "rate"}], "tool_choice": {"type": "any"}}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}


RIGHT: dict[str, Any] = {"source": "texts", "row_key": "id", "prompt": "Rate {{ text }}"}
STATIC = dg.StaticPartitionsDefinition(["a", "b"])
MULTI = dg.MultiPartitionsDefinition({"x": STATIC, "y": STATIC})


@pytest.mark.parametrize(
    ("declared", "argument"),
    [
        ({"query": "SELECT 1"}, "source"),
        ({"source": None}, "source"),
        ({"source": 'a."b'}, "source"),
        ({"source": None, "query": "SELECT 1; SELECT 2"}, "query"),
        ({"source": None, "query": "DROP TABLE texts"}, "query"),
        ({"source": None, "query": "SELEC"}, "query"),
        ({"row_key": []}, "row_key"),
        ({"row_key": ["id", "ID"]}, "row_key"),
        ({"prompt": "Rate this text"}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_failure_rate": 1.5}, "max_failure_rate"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"pilot": 0}, "pilot"),
        ({"rows_per_request": 0}, "rows_per_request"),
        ({"rows_per_request": 1_001}, "rows_per_request"),
        ({"rows_per_request": 2, "prompt": str}, "rows_per_request"),
        ({"rows_per_request": 2, "system": "For {{ who }}"}, "rows_per_request"),
        ({"rows_per_request": 2, "params": {"messages": EXAMPLES}}, "rows_per_request"),
        ({"rows_per_request": 2, "output": Rated, "params": FORCED}, "rows_per_request"),
        (
            {"rows_per_request": 2, "params": {"output_config": {"format": SCHEMA}}},
            "rows_per_request",
        ),
        (
            {"rows_per_request": 2, "prompt": [Document("pdf", citations=True)]},
            "rows_per_request",
        ),
        ({"chunk_size": 100_001}, "chunk_size"),
        ({"params": {"model": "x"}}, "params"),
        ({"params": {"stream": True}}, "params"),
        ({"params": {"temprature": 1}}, "params"),
        ({"params": {"metadata": object()}}, "params"),
        ({"params": {"system": "x"}}, "params"),
        ({"params": [("metadata", None)]}, "params"),
        ({"params": {"temperature": float("nan")}}, "params"),
        ({"params": {"tool_choice": {"type": "auto"}}}, "params"),
        ({"params": {"output_config": {"format": SCHEMA}}, "output": Rated}, "params"),
        ({"params": {"messages": [{"role": "user", "content": " "}]}}, "params"),
        ({"params": {"messages": [{"role": "user", "content": [{"type": []}]}]}}, "params"),
        ({"params": {"stop_sequences": "END"}}, "params"),
        ({"params": {"thinking": {"type": "deep"}}}, "params"),
        ({"params": {"thinking": {"type": "enabled"}}}, "params"),
        ({"params": {"output_config": {"effort": "enormous"}}}, "params"),
        ({"params": {"tools": [{"name": "rate"}]}}, "params"),
        ({"params": {"tool_choice": {"type": "tool", "name": "rate"}}}, "params"),
        ({"params": {"tool_choice": {"type": "some"}}}, "params"),
        ({"params": {"messages": "Rate: good"}}, "params"),
        ({"params": {"messages": [{"role": "robot", "content": "x"}]}}, "params"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["Rate this text"]}, "prompt"),
        ({"prompt": [Text(" "), Text("{{ text }}")]}, "prompt"),
        ({"prompt": [{"type": "text", "text": "{{ text }}"}]}, "prompt"),
        ({"prompt": [Image("picture", resize=-1)]}, "prompt"),
        ({"prompt": [Document("text", media_type="pdf")]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "half of a character \ud800 {{ text }}"}, "prompt"),
        ({"prompt": _later}, "prompt"),
        ({"prompt": [Document("text", citations=True)], "output": Rated}, "prompt"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"system": [PICTURE]}, "system"),
        ({"system": {"type": "text"}}, "system"),
        ({"system": 5}, "system"),
        ({"system": " "}, "system"),
        ({"cache": "2h"}, "cache"),
        ({"system": "About {{ text }}", "prompt": str}, "system"),
        ({"cache": "1h", "prompt": "{{ text }}"}, "cache"),
        ({"wait": "sensr"}, "wait"),
        ({"wait": None}, "wait"),
        ({"max_cost_usd": True}, "max_cost_usd"),
        ({"max_cost_usd": "5"}, "max_cost_usd"),
        ({"max_wait_hours": True}, "max_wait_hours"),
        ({"max_failure_rate": True}, "max_failure_rate"),
        ({"max_attempts": True}, "max_attempts"),
        ({"max_tokens": 10.5}, "max_tokens"),
        ({"chunk_size": "100"}, "chunk_size"),
        ({"table": "a.b.c.d"}, "table"),
        ({"partitions_def": STATIC}, "partition_expr"),
        ({"partition_expr": "corpus"}, "partition_expr"),
        ({"partitions_def": MULTI, "partition_expr": "corpus"}, "partition_expr"),
        ({"partitions_def": MULTI, "partition_expr": {"x": "a"}}, "partition_expr"),
    ],
)
def test_an_argument_that_cannot_work_is_named(declared: dict[str, Any], argument: str) -> None:
    with pytest.raises(DeclarationError, match=f"Asset 'ratings', argument `{argument}`"):
        build_claude_batch_asset("ratings", **{**RIGHT, **declared})


def test_one_column_to_carry_over_may_be_named_as_one_key_is() -> None:
    found = batch_asset(build_claude_batch_asset("ratings", **RIGHT, include="text"))

    assert found is not None
    assert found.declaration.include == ("text",)


class Clash(BaseModel):
    ID: str


def test_an_output_field_that_collides_with_the_key_is_refused() -> None:
    with pytest.raises(ColumnCollisionError, match="'ID'"):
        build_claude_batch_asset("ratings", **RIGHT, output=Clash)


def test_a_key_that_collides_with_our_own_columns_is_refused() -> None:
    with pytest.raises(ColumnCollisionError, match="'_Partition'"):
        build_claude_batch_asset("ratings", **{**RIGHT, "row_key": "_Partition"})


@pytest.mark.parametrize(
    ("key", "table", "answers", "failures"),
    [
        ("ratings", None, "main.ratings", "main.ratings_failures"),
        (["shop", "ratings"], None, "shop.ratings", "shop.ratings_failures"),
        ("ratings", "other", "main.other", "main.other_failures"),
        ("ratings", '"odd schema".t', "odd schema.t", "odd schema.t_failures"),
    ],
)
def test_where_the_tables_are(
    key: str | list[str], table: str | None, answers: str, failures: str
) -> None:
    found = batch_asset(build_claude_batch_asset(key, **RIGHT, table=table))

    assert found is not None
    assert (str(found.declaration.answers), str(found.declaration.failures)) == (answers, failures)


@dg.asset
def texts() -> None: ...


@dg.asset(key=["raw", "texts"], metadata={"dagster/table_name": "lake.texts_v2"})
def named_texts() -> None: ...


@pytest.mark.parametrize(
    ("source", "tables"),
    [
        ("texts", ["texts"]),
        ("raw.texts", ["raw.texts"]),
        (texts, ["main.texts", "public.texts"]),
        (dg.AssetKey(["raw", "texts"]), ["raw.texts"]),
        (named_texts, ["lake.texts_v2"]),
    ],
    ids=["a table", "a table with schema", "an asset", "a key with a prefix", "table metadata"],
)
def test_where_the_source_is_looked_for(source: Any, tables: list[str]) -> None:
    found = batch_asset(build_claude_batch_asset("ratings", **{**RIGHT, "source": source}))

    assert found is not None
    assert [str(table) for table in found.declaration.source_candidates] == tables


def test_a_source_asset_is_the_upstream() -> None:
    built = build_claude_batch_asset("ratings", **{**RIGHT, "source": texts}, deps=["more"])

    (spec,) = built.specs
    assert {dep.asset_key for dep in spec.deps} == {texts.key, dg.AssetKey("more")}


def test_the_declaration_survives_what_dagster_does_to_assets() -> None:
    built = build_claude_batch_asset("ratings", **RIGHT)
    (mapped,) = dg.map_asset_specs(lambda spec: spec.replace_attributes(tags={"a": "b"}), [built])
    owned = mapped.with_attributes(group_names_by_key={mapped.key: "reviews"})
    repository = dg.Definitions(
        assets=[owned], resources={"duckdb": 1, "claude_batch": 2}
    ).get_repository_def()

    found = batch_asset(repository.assets_defs_by_key[dg.AssetKey("ratings")])

    assert found is batch_asset(built)


def test_definition_metadata_tells_io_managers_where_to_read() -> None:
    built = build_claude_batch_asset(
        ["shop", "ratings"],
        **RIGHT,
        partitions_def=dg.DailyPartitionsDefinition("2026-01-01"),
        partition_expr="day",
    )

    metadata = built.metadata_by_key[built.key]
    assert metadata["schema"] == "shop"
    assert metadata["partition_expr"] == "strptime(_partition, '%Y-%m-%d')"
    assert metadata["dagster/table_name"] == "shop.ratings"


def test_caching_what_is_too_short_to_be_cached_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="claude-haiku-5-5 caches nothing below 512"):
        build_claude_batch_asset("ratings", **RIGHT, cache="1h")


def test_a_function_needs_no_columns_and_may_be_cached() -> None:
    long = "Rate with great care. " * 200
    asset = build_claude_batch_asset(
        "ratings", **{**RIGHT, "prompt": lambda row: row["text"]}, system=long, cache="1h"
    )

    found = batch_asset(asset)
    assert found is not None
    assert found.declaration.shape.columns == ()
    assert found.declaration.shape.needs_whole_row


def test_a_single_part_is_a_prompt_too() -> None:
    found = batch_asset(build_claude_batch_asset("ratings", **{**RIGHT, "prompt": Image("it")}))

    assert found is not None
    assert found.declaration.shape.prompt == (Image("it"),)


def test_what_json_writes_otherwise_is_sent_as_json_writes_it() -> None:
    numbered = {"type": "object", "properties": {1: {"type": "string"}}}
    params = {"tools": [{"name": "rate", "input_schema": numbered}]}

    found = batch_asset(build_claude_batch_asset("ratings", **RIGHT, params=params))

    assert found is not None
    (tool,) = found.declaration.shape.tree()["tools"]
    assert list(tool["input_schema"]["properties"]) == ["1"]


COLUMNS = dg.TableSchema(columns=[dg.TableColumn("id"), dg.TableColumn("Text")])
DESCRIBED = {"dagster/column_schema": COLUMNS}


@dg.asset(metadata=DESCRIBED)
def described() -> None:
    """Its definition says which columns its table has."""


@pytest.mark.parametrize(
    "source", [described, dg.AssetSpec("described", metadata=DESCRIBED)], ids=["asset", "spec"]
)
@pytest.mark.parametrize(
    ("declared", "argument"),
    [
        ({"row_key": "key"}, "row_key"),
        ({"prompt": "Rate {{ txt }}"}, "prompt"),
        ({"prompt": [Text("Rate {{ id }}"), Image("picture")]}, "prompt"),
        ({"include": ["lang"]}, "include"),
    ],
)
def test_a_column_that_the_upstream_asset_lacks_is_refused(
    source: Any, declared: dict[str, Any], argument: str
) -> None:
    with pytest.raises(DeclarationError, match=f"`{argument}`: the source has no column") as raised:
        build_claude_batch_asset("ratings", **{**RIGHT, "source": source, **declared})

    assert "Use one of id, Text" in str(raised.value)


def test_columns_of_an_upstream_asset_are_found_whatever_their_case() -> None:
    made = build_claude_batch_asset(
        "ratings", source=described, row_key="ID", prompt="Rate {{ text }}", include=["TEXT"]
    )

    assert batch_asset(made) is not None


def test_an_asset_over_the_answers_of_another_knows_their_columns() -> None:
    first = build_claude_batch_asset("ratings", **{**RIGHT, "include": ["lang"]}, output=Rated)
    right: dict[str, Any] = {"row_key": "id", "prompt": "Why {{ stars }}?", "include": ["lang"]}

    assert build_claude_batch_asset("reasons", source=first, **right)
    with pytest.raises(DeclarationError, match="no column 'star'"):
        build_claude_batch_asset("reasons", source=first, **{**right, "prompt": "Why {{ star }}?"})
