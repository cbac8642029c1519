"""How partitions, and how they become runs, are written in YAML: in Dagster's own words."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import dagster as dg
from pydantic import ConfigDict

from dagster_claude_batch.component.arguments import as_template, of_template


class StaticPartitions(dg.Model):
    """Partitions that are listed."""

    type: Literal["static"]
    model_config = ConfigDict(coerce_numbers_to_str=True, extra="forbid")

    partition_keys: list[str]


class DynamicPartitions(dg.Model):
    """Partitions that are added while Dagster runs, by the name of their definition."""

    type: Literal["dynamic"]
    name: str


class TimePartitions(dg.Model):
    """Hours, days, weeks or months; ``fmt`` and offsets as in Dagster's definitions of them."""

    type: Literal["hourly", "daily", "weekly", "monthly"]
    start_date: str
    end_date: str | None = None
    timezone: str | None = None
    fmt: str | None = None
    end_offset: int | None = None
    minute_offset: int | None = None
    hour_offset: int | None = None
    day_offset: int | None = None


class TimeWindowPartitions(dg.Model):
    """Windows of a cron schedule."""

    type: Literal["time_window"]
    start_date: str
    end_date: str | None = None
    timezone: str | None = None
    fmt: str
    end_offset: int = 0
    cron_schedule: str


OneDimension: TypeAlias = (
    StaticPartitions | DynamicPartitions | TimePartitions | TimeWindowPartitions
)


class MultiPartitions(dg.Model):
    """Partitions of several dimensions, by name."""

    type: Literal["multi"]
    dimensions: Mapping[str, OneDimension]


class SingleRun(dg.Model):
    """A backfill is one run."""

    type: Literal["single_run"]


class MultiRun(dg.Model):
    """A backfill is several runs."""

    type: Literal["multi_run"]
    max_partitions_per_run: int = 1


YamlPartitions: TypeAlias = OneDimension | MultiPartitions | str | None
YamlBackfillPolicy: TypeAlias = SingleRun | MultiRun | str | None


def partitions_def(
    context: dg.ResolutionContext, written: YamlPartitions
) -> dg.PartitionsDefinition | None:
    """The definition; a text is a template, of which it comes."""
    match written:
        case None:
            return None
        case str():
            found = as_template(context, written)
            kind = "{type: daily, start_date: …}"
            return of_template("partitions_def", found, dg.PartitionsDefinition, kind)
        case MultiPartitions():
            return dg.MultiPartitionsDefinition(
                {name: _one(context, each) for name, each in written.dimensions.items()}
            )
        case _:
            return _one(context, written)


_BY_TIME = {
    "hourly": dg.HourlyPartitionsDefinition,
    "daily": dg.DailyPartitionsDefinition,
    "weekly": dg.WeeklyPartitionsDefinition,
    "monthly": dg.MonthlyPartitionsDefinition,
}


_OFFSETS = frozenset({"minute_offset", "hour_offset", "day_offset"})
_OFFSETS_OF = {
    "hourly": {"minute_offset"},
    "daily": {"minute_offset", "hour_offset"},
    "weekly": _OFFSETS,
    "monthly": _OFFSETS,
}


def _one(context: dg.ResolutionContext, written: OneDimension) -> dg.PartitionsDefinition:
    given: dict[str, Any] = {
        name: as_template(context, value)
        for name, value in written.model_dump(exclude={"type"}, exclude_none=True).items()
    }
    match written:
        case StaticPartitions():
            return dg.StaticPartitionsDefinition([str(key) for key in given["partition_keys"]])
        case DynamicPartitions():
            return dg.DynamicPartitionsDefinition(name=str(given["name"]))
        case TimeWindowPartitions():
            start, end = given.pop("start_date"), given.pop("end_date", None)
            return dg.TimeWindowPartitionsDefinition(start=start, end=end, **given)
        case TimePartitions():
            unknown = sorted(_OFFSETS.difference(_OFFSETS_OF[written.type]).intersection(given))
            if unknown:
                problem = f"`partitions_def`: {written.type} partitions have no {unknown[0]}."
                raise ValueError(problem)
            return _BY_TIME[written.type](**given)


def backfill_policy(
    context: dg.ResolutionContext, written: YamlBackfillPolicy
) -> dg.BackfillPolicy | None:
    """The policy; a text is a template, of which it comes."""
    match written:
        case None:
            return None
        case str():
            found = as_template(context, written)
            return of_template("backfill_policy", found, dg.BackfillPolicy, "{type: single_run}")
        case SingleRun():
            return dg.BackfillPolicy.single_run()
        case MultiRun():
            return dg.BackfillPolicy.multi_run(written.max_partitions_per_run)
