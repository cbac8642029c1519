"""A cap in a whole run of Dagster: which partitions are materialized, and what is said."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from dagster_duckdb import DuckDBResource
from genai_prices import Usage, calc_price

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_asset

SHORT: Mapping[str, Any] = {"max_tokens": 16, "prices": {"input": "0.001", "output": 10}}
"""With these, a request costs more than half of the most that it can, 0.00016 USD."""

CORPORA = dg.StaticPartitionsDefinition(["reviews", "tweets"])


class Place:
    """A warehouse with two reviews and thirty tweets, a simulator, and an instance."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.database = str(home / "warehouse.duckdb")
        self.claude = LocalClaudeBatchResource(
            path=str(home / "simulator"), processing_seconds=[0, 0], poll_interval_seconds=0.05
        )
        self.instance = instance
        self.sql(
            "CREATE TABLE texts AS SELECT if(i < 2, 'reviews', 'tweets') AS corpus, i AS id, "
            "'Text number ' || i AS text FROM range(32) AS r(i)"
        )

    def sql(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(duckdb.connect(self.database)) as connection:
            return connection.execute(sql).fetchall()

    def materialize(
        self, asset: dg.AssetsDefinition, **config: object
    ) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [asset],
            resources={
                "duckdb": DuckDBResource(database=self.database),
                "claude_batch": self.claude,
            },
            instance=self.instance,
            run_config={"ops": {"rated": {"config": config}}},
            tags={
                "dagster/asset_partition_range_start": "reviews",
                "dagster/asset_partition_range_end": "tweets",
            },
            raise_on_error=False,
        )

    def bill(self) -> Decimal:
        """What the simulator has billed, by a price list that is not ours."""
        usages = [each.usage for each in self.claude.simulator.bill()]
        return sum((_price(usage) for usage in usages), Decimal(0))


def _price(usage: dict[str, Any]) -> Decimal:
    counted = Usage(input_tokens=usage["input_tokens"], output_tokens=usage["output_tokens"])
    return calc_price(
        counted,
        model_ref="claude-haiku-5-5",
        provider_id="anthropic",
        price_context={"processing": "batch"},
    ).total_price


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Place(tmp_path, instance)


def rated(**declared: Any) -> dg.AssetsDefinition:
    return build_claude_batch_asset(
        "rated",
        source="texts",
        row_key="id",
        prompt="Rate {{ text }}",
        partitions_def=CORPORA,
        partition_expr="corpus",
        backfill_policy=dg.BackfillPolicy.single_run(),
        **declared,
    )


def _materialized(place: Place) -> dict[str | None, Any]:
    """The metadata of each partition that has been materialized."""
    found = place.instance.fetch_materializations(dg.AssetKey("rated"), limit=10).records
    events = [record.asset_materialization for record in found]
    return {event.partition: event.metadata for event in events if event is not None}


def _failure(result: dg.ExecuteInProcessResult) -> str:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    data = failed.step_failure_data
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)


def test_estimate_cap_and_cost_stand_beside_the_bill(place: Place) -> None:
    asset = rated(max_cost_usd=0.003)
    dry = place.materialize(asset, dry_run=True)
    result = place.materialize(asset)

    assert result.success
    most = sum(
        float(observation.metadata["estimated_cost_usd_at_most"].value)
        for observation in dry.asset_observations_for_node("rated")
    )
    cost = sum(float(each["cost_usd"].value) for each in _materialized(place).values())
    assert cost == pytest.approx(float(place.bill()), abs=1e-12)
    assert place.sql("SELECT sum(_cost_usd) FROM rated") == [(place.bill(),)]
    assert place.sql("SELECT sum(cost_usd) FROM claude_batch.spending") == [(place.bill(),)]
    assert cost < 0.003 < most  # all of it at once would not have fitted
    assert len(place.claude.simulator.batches()) > 1


def test_the_launchpad_gives_another_cap_and_full_partitions_are_materialized(
    place: Place,
) -> None:
    asset = rated(max_cost_usd=100.0, **SHORT)

    result = place.materialize(asset, max_cost_usd=0.0006)

    assert not result.success
    assert _materialized(place).keys() == {"reviews"}
    said = _failure(result)
    ((answered,),) = place.sql("SELECT count(*) FROM rated WHERE _partition = 'tweets'")
    assert f"{30 - answered} rows of partition 'tweets' were not sent: `max_cost_usd`" in said
    assert "Materialized all the same: reviews." in said
    assert "sends only the rows that are left (on a budget of their own)" in said


def test_what_was_left_is_sent_by_the_next_materialization(place: Place) -> None:
    asset = rated(**SHORT)
    place.materialize(asset, max_cost_usd=0.0006)
    before = len(place.claude.simulator.bill())

    result = place.materialize(asset)

    assert result.success
    assert before < 32
    assert len(place.claude.simulator.bill()) == 32
    assert place.sql("SELECT count(*) FROM rated") == [(32,)]


def test_a_trial_whose_rows_a_cap_keeps_from_being_sent_fails(place: Place) -> None:
    result = place.materialize(rated(), limit=5, max_cost_usd=0.000001)

    assert not result.success
    assert "were not sent" in _failure(result)
    assert len(place.claude.simulator.batches()) == 0
