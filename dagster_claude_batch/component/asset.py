"""One asset in YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from functools import partial
from typing import Annotated, Any, Final, Literal, get_type_hints

import dagster as dg

from dagster_claude_batch.assets import build_claude_batch_asset
from dagster_claude_batch.component import arguments, partitions
from dagster_claude_batch.component.said import said_of

IN_YAML: Final = {
    "key": "a text, as `snippet_sentiment` or `reviews/sentiment`.",
    "source": "the name of a table, or `{asset: raw/snippets}`.",
    "prompt": "a text, a list of texts and of `{text: …}`, `{image: …}` and `{document: …}`, or "
    "`{function: package.module:function}`. `{{ … }}` stands for a column.",
    "output": "`package.module:Model`, or the fields, as `{label: {enum: [good, bad]}, score: "
    "number}`.",
    "system": "a text, or a list of text blocks. `{{ … }}` stands for a column.",
    "partitions_def": "`{type: static, partition_keys: […]}`, or with the type `dynamic`, "
    "`hourly`, `daily`, `weekly`, `monthly`, `time_window` or `multi`; or a template.",
    "deps": "keys, as `[raw/authors]`, or one of them.",
    "automation_condition": "a template: `{{ dg.AutomationCondition.eager() }}`; with Dagster "
    "1.12 `{{ automation_condition.eager() }}`.",
    "freshness_policy": "a template of your own (`template_vars_module`); from Dagster 1.13 on "
    "also `{{ dg.FreshnessPolicy.cron('0 9 * * *', datetime.timedelta(hours=2)) }}`.",
    "backfill_policy": "`{type: single_run}` or `{type: multi_run, max_partitions_per_run: 7}`; "
    "or a template.",
    "retry_policy": "`{max_retries: 2, delay: 30}`; or a template.",
}
"""How an argument is written that is no plain value."""

_TYPES: Final = get_type_hints(build_claude_batch_asset)


def _plain(argument: str, **more: Any) -> dg.Resolver:
    """A value of the type that the factory takes, or a template of one."""
    kind = _TYPES[argument]
    return _by(partial(arguments.value_of_type, argument, kind), argument, kind, **more)


def _by(function: Any, argument: str, written: Any, **more: Any) -> dg.Resolver:
    """A function resolves what is ``written``; templates too, for in some they mean columns."""
    described = said_of(build_claude_batch_asset, argument)
    if argument in IN_YAML:
        described = f"{described} In YAML: {IN_YAML[argument]}"
    return dg.Resolver(
        function,
        model_field_type=written,
        description=described,
        inject_before_resolve=False,
        **more,
    )


def _template(argument: str, kind: type, example: str) -> dg.Resolver:
    """A template of an object of Dagster's."""

    def resolve(context: dg.ResolutionContext, written: str | None) -> object:
        if written is None:
            return None
        found = arguments.as_template(context, written)
        return arguments.of_template(argument, found, kind, f"{{{{ {example} }}}}")  # pyright: ignore[reportUnknownVariableType]  # Dagster's generic

    return _by(resolve, argument, str | None)


@dataclass(kw_only=True)
class ClaudeBatchAsset(dg.Resolvable):
    """One asset: the arguments of `build_claude_batch_asset`; what is left out is as there."""

    key: Annotated[dg.AssetKey, _by(arguments.asset_key, "key", str)]
    source: Annotated[Any, _by(arguments.source, "source", arguments.YamlSource)] = None
    query: Annotated[str | None, _plain("query")] = None
    row_key: Annotated[str | Sequence[str], _plain("row_key")]
    prompt: Annotated[Any, _by(arguments.prompt, "prompt", arguments.YamlPrompt)]
    output: Annotated[Any, _by(arguments.output, "output", arguments.YamlOutput)] = None
    # `model` itself is a method that every `Resolvable` has.
    model_id: Annotated[str | None, _plain("model", model_field_name="model")] = None
    max_tokens: Annotated[int | None, _plain("max_tokens")] = None
    system: Annotated[Any, _by(arguments.as_it_is, "system", arguments.YamlSystem)] = None
    cache: Annotated[Literal["5m", "1h"] | None, _plain("cache")] = None
    params: Annotated[Any, _by(arguments.as_template, "params", arguments.YamlParams)] = None
    include: Annotated[str | Sequence[str] | None, _plain("include")] = None
    table: Annotated[str | None, _plain("table")] = None
    partitions_def: Annotated[
        Any, _by(partitions.partitions_def, "partitions_def", partitions.YamlPartitions)
    ] = None
    partition_expr: Annotated[str | Mapping[str, str] | None, _plain("partition_expr")] = None
    deps: Annotated[Any, _by(arguments.asset_keys, "deps", list[str] | None)] = None
    chunk_size: Annotated[int | None, _plain("chunk_size")] = None
    rows_per_request: Annotated[int | None, _plain("rows_per_request")] = None
    deduplicate: Annotated[bool | None, _plain("deduplicate")] = None
    max_attempts: Annotated[int | None, _plain("max_attempts")] = None
    max_failure_rate: Annotated[float | None, _plain("max_failure_rate")] = None
    max_cost_usd: Annotated[float | None, _plain("max_cost_usd")] = None
    max_wait_hours: Annotated[float | None, _plain("max_wait_hours")] = None
    prices: Annotated[Mapping[str, float | str] | None, _plain("prices")] = None
    pilot: Annotated[int | None, _plain("pilot")] = None
    delete_remote_results: Annotated[bool | None, _plain("delete_remote_results")] = None
    wait: Annotated[Literal["sensor", "run"] | None, _plain("wait")] = None
    duckdb_resource: Annotated[str | None, _plain("duckdb_resource")] = None
    claude_resource: Annotated[str | None, _plain("claude_resource")] = None
    description: Annotated[str | None, _plain("description")] = None
    metadata: Annotated[Mapping[str, Any] | None, _plain("metadata")] = None
    tags: Annotated[Mapping[str, str] | None, _plain("tags")] = None
    group_name: Annotated[str | None, _plain("group_name")] = None
    owners: Annotated[Sequence[str] | None, _plain("owners")] = None
    kinds: Annotated[set[str] | None, _plain("kinds")] = None
    code_version: Annotated[str | None, _plain("code_version")] = None
    automation_condition: Annotated[
        Any, _template("automation_condition", dg.AutomationCondition, "eager()")
    ] = None
    freshness_policy: Annotated[
        Any, _template("freshness_policy", dg.FreshnessPolicy, "my_policy")
    ] = None
    backfill_policy: Annotated[
        Any, _by(partitions.backfill_policy, "backfill_policy", partitions.YamlBackfillPolicy)
    ] = None
    retry_policy: Annotated[
        Any, _by(arguments.retry_policy, "retry_policy", arguments.YamlRetryPolicy | None)
    ] = None
    op_tags: Annotated[Mapping[str, Any] | None, _plain("op_tags")] = None
    pool: Annotated[str | None, _plain("pool")] = None

    def build(self) -> dg.AssetsDefinition:
        """Build the asset.

        Raises:
            DeclarationError: As `build_claude_batch_asset`.
        """
        given = {each.name: getattr(self, each.name) for each in fields_of(self)}
        given["model"] = given.pop("model_id")
        return build_claude_batch_asset(
            **{name: value for name, value in given.items() if value is not None}
        )
