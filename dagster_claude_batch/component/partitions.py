"""How partitions, and how they become runs, are written in YAML: in Dagster's own words."""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import dagster as dg
from pydantic import ConfigDict, Field

from dagster_claude_batch.component.arguments import as_template, form, of_template

_START: Final = "When the first partition begins, as `2026-01-01`, or in the form of `fmt`."
_END: Final = "When the last one ends; left out, they go on."
_TIMEZONE: Final = "The time zone of their beginnings, as `Europe/Rome`; left out, UTC."
_FMT: Final = "How their keys are written, for `strftime`"
_END_OFFSET: Final = (
    "How many partitions there are beyond the last that is over; with less than 0, so many fewer."
)


class StaticPartitions(dg.Model):
    """Partitions that are listed."""

    model_config = ConfigDict(coerce_numbers_to_str=True, extra="forbid") | form(
        "partitions_def: listed", {"type": "static", "partition_keys": ["reviews", "tweets"]}
    )

    type: Literal["static"] = Field(description="Which kind of partitions it is.")
    partition_keys: list[str] = Field(description="Their keys.")


class DynamicPartitions(dg.Model):
    """Partitions that are added while Dagster runs."""

    model_config = form("partitions_def: dynamic", {"type": "dynamic", "name": "customers"})

    type: Literal["dynamic"] = Field(description="Which kind of partitions it is.")
    name: str = Field(description="The name by which sensors and people add partitions.")


class TimePartitions(dg.Model):
    """Hours, days, weeks or months, as in Dagster's definitions of them."""

    model_config = form(
        "partitions_def: hours, days, weeks or months",
        {"type": "daily", "start_date": "2026-01-01", "timezone": "Europe/Rome"},
        {"type": "weekly", "start_date": "2026-01-01", "day_offset": 1, "hour_offset": 6},
    )

    type: Literal["hourly", "daily", "weekly", "monthly"] = Field(
        description="How long a partition is."
    )
    start_date: str = Field(description=_START)
    end_date: str | None = Field(default=None, description=_END)
    timezone: str | None = Field(default=None, description=_TIMEZONE)
    fmt: str | None = Field(default=None, description=f"{_FMT}; left out, Dagster's own form.")
    end_offset: int | None = Field(default=None, description=_END_OFFSET)
    minute_offset: int | None = Field(
        default=None, description="At which minute of the hour they begin."
    )
    hour_offset: int | None = Field(
        default=None, description="At which hour they begin; not for `hourly`."
    )
    day_offset: int | None = Field(
        default=None,
        description="On which day they begin: of the week, from 0 for Sunday, or of the month, "
        "from 1; only for `weekly` and `monthly`.",
    )


class TimeWindowPartitions(dg.Model):
    """Windows between the times of a cron schedule."""

    model_config = form(
        "partitions_def: by a cron schedule",
        {
            "type": "time_window",
            "start_date": "2026-01-01",
            "fmt": "%Y-%m-%d",
            "cron_schedule": "0 0 1 */3 *",
        },
    )

    type: Literal["time_window"] = Field(description="Which kind of partitions it is.")
    start_date: str = Field(description=_START)
    end_date: str | None = Field(default=None, description=_END)
    timezone: str | None = Field(default=None, description=_TIMEZONE)
    fmt: str = Field(description=f"{_FMT}.")
    end_offset: int = Field(default=0, description=_END_OFFSET)
    cron_schedule: str = Field(description="When they begin, as for cron.")


OneDimension: TypeAlias = (
    StaticPartitions | DynamicPartitions | TimePartitions | TimeWindowPartitions
)


class MultiPartitions(dg.Model):
    """Partitions of two dimensions; `partition_expr` is a mapping from their names then."""

    model_config = form(
        "partitions_def: two dimensions",
        {
            "type": "multi",
            "dimensions": {
                "day": {"type": "daily", "start_date": "2026-01-01"},
                "language": {"type": "static", "partition_keys": ["de", "pt"]},
            },
        },
    )

    type: Literal["multi"] = Field(description="Which kind of partitions it is.")
    dimensions: Mapping[str, OneDimension] = Field(
        description="The dimensions by their names, each in one of the other forms."
    )


class SingleRun(dg.Model):
    """A backfill is one run."""

    model_config = form("backfill_policy: one run", {"type": "single_run"})

    type: Literal["single_run"] = Field(description="Which policy it is.")


class MultiRun(dg.Model):
    """A backfill is several runs."""

    model_config = form(
        "backfill_policy: several runs", {"type": "multi_run", "max_partitions_per_run": 7}
    )

    type: Literal["multi_run"] = Field(description="Which policy it is.")
    max_partitions_per_run: int = Field(default=1, description="The most partitions of one run.")


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
