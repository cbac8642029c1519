from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import duckdb
import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from dagster_claude_batch.cost import Prices, Rates, batch_prices, declared_prices

NOW = datetime(2026, 11, 22, tzinfo=UTC)
COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "web_searches",
)
MODELS = [
    model.id
    for provider in providers
    if provider.id == "anthropic"
    for model in provider.models
    if batch_prices(model.id, at=NOW)
]


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def prices_of(model: str) -> Prices:
    prices = batch_prices(model, at=NOW)
    assert prices
    return prices


def standard_price_of(model: str) -> Decimal:
    """What ten input tokens cost outside batches."""
    usage = Usage(input_tokens=10)
    found = calc_price(usage, model_ref=model, provider_id="anthropic", genai_request_timestamp=NOW)
    return found.total_price


def cost_in_sql(
    connection: duckdb.DuckDBPyConnection, prices: Prices, **counts: int | None
) -> Decimal:
    expression = prices.sql(**{name: f"${name}" for name in COUNTS})
    values = {name: counts.get(name) for name in COUNTS}
    (cost,) = connection.execute(f"SELECT {expression}", values).fetchall()[0]
    return cost


def cost_by_genai_prices(model: str, counts: dict[str, int]) -> Decimal:
    writes = counts["cache_write_5m_tokens"] + counts["cache_write_1h_tokens"]
    prompt = counts["input_tokens"] + counts["cache_read_tokens"] + writes
    usage = Usage(**{**counts, "input_tokens": prompt, "cache_write_tokens": writes})
    return calc_price(
        usage,
        model_ref=model,
        provider_id="anthropic",
        genai_request_timestamp=NOW,
        price_context={"processing": "batch"},
    ).total_price


@st.composite
def usages(draw: st.DrawFn) -> dict[str, int]:
    """Random counts, or a prompt of a size next to a tier's border, however it is made up."""
    counts = {name: draw(st.integers(0, 400_000)) for name in COUNTS}
    border = draw(st.sampled_from([None, 100_000, 100_001, 200_000, 200_001]))
    if border:
        parts = sorted(draw(st.lists(st.integers(0, border), min_size=3, max_size=3)))
        ends = [0, *parts, border]
        sizes = [end - start for start, end in pairwise(ends)]
        prompt = (name for name in COUNTS if name not in ("output_tokens", "web_searches"))
        counts |= dict(zip(prompt, sizes, strict=True))
    return counts


@given(model=st.sampled_from(MODELS), counts=usages())
def test_sql_python_and_genai_prices_agree_on_every_usage(
    connection: duckdb.DuckDBPyConnection, model: str, counts: dict[str, int]
) -> None:
    prices = prices_of(model)

    in_python = prices.usd(**counts)

    assert in_python == cost_by_genai_prices(model, counts)
    assert cost_in_sql(connection, prices, **counts) == in_python


@pytest.mark.parametrize(
    ("model", "counts", "usd"),
    [
        pytest.param(
            "claude-haiku-5-5",
            {"input_tokens": 100_000, "output_tokens": 1_000},
            "0.00525",  # 0.1 * 0.05 + 0.001 * 0.25
            id="haiku 5.5 at the border",
        ),
        pytest.param(
            "claude-haiku-5-5",
            {"input_tokens": 100_001, "output_tokens": 1_000},
            "0.02625025",  # 0.100001 * 0.25 + 0.001 * 1.25
            id="haiku 5.5 above the border",
        ),
        pytest.param(
            "claude-haiku-5-5",
            {"input_tokens": 1, "cache_read_tokens": 100_000},
            "0.00250025",  # 0.000001 * 0.25 + 0.1 * 0.025
            id="cached tokens count for the border",
        ),
        pytest.param(
            "claude-haiku-4-5",
            {"input_tokens": 1_000_000, "output_tokens": 1_000_000},
            "3",  # 0.5 + 2.5
            id="haiku 4.5",
        ),
        pytest.param("claude-haiku-4-5", {"cache_read_tokens": 1_000}, "0.00005", id="cache read"),
        pytest.param(
            "claude-haiku-4-5", {"cache_write_5m_tokens": 1_000}, "0.000625", id="5 minute write"
        ),
        pytest.param(
            "claude-haiku-4-5", {"cache_write_1h_tokens": 1_000}, "0.001", id="1 hour write"
        ),
        pytest.param("claude-haiku-4-5", {"web_searches": 3}, "0.03", id="web searches"),
        pytest.param("claude-haiku-4-5", {}, "0", id="nothing counted"),
        pytest.param(
            "claude-haiku-5-5",
            {"cache_read_tokens": 2_000, "cache_write_5m_tokens": 100, "output_tokens": 10},
            "0.00001875",  # 0.002 * 0.005 + 0.0001 * 0.0625 + 0.00001 * 0.25
            id="haiku 5.5 with a cache of 5 minutes",
        ),
        pytest.param(
            "claude-haiku-5-5",
            {"cache_write_1h_tokens": 100_001},
            "0.0500005",  # 0.100001 * 0.5
            id="haiku 5.5 with a 1 hour write above the border",
        ),
        pytest.param(
            "claude-sonnet-5-5",
            {
                "input_tokens": 300_000,
                "output_tokens": 2_000,
                "cache_read_tokens": 10_000,
                "cache_write_1h_tokens": 1_000,
            },
            "0.3125",  # 0.3 * 1 + 0.002 * 5 + 0.01 * 0.05 + 0.001 * 2
            id="sonnet 5.5 has one tier",
        ),
        pytest.param(
            "claude-opus-5-5",
            {"input_tokens": 1_000, "output_tokens": 1_000, "cache_write_5m_tokens": 1_000},
            "0.0145",  # 0.001 * 2 + 0.001 * 10 + 0.001 * 2.5
            id="opus 5.5",
        ),
    ],
)
def test_a_cost_worked_out_by_hand(
    connection: duckdb.DuckDBPyConnection, model: str, counts: dict[str, int], usd: str
) -> None:
    prices = prices_of(model)

    assert prices.usd(**counts) == Decimal(usd)
    assert cost_in_sql(connection, prices, **counts) == Decimal(usd)


def test_the_default_model_has_a_batch_price_today() -> None:
    assert batch_prices("claude-haiku-5-5")


def test_a_batch_costs_half_of_the_standard_price() -> None:
    batch = prices_of("claude-haiku-5-5").usd(input_tokens=10)

    assert standard_price_of("claude-haiku-5-5") == 2 * batch


def test_a_model_id_with_a_date_costs_what_the_model_costs() -> None:
    assert prices_of("claude-haiku-4-5-20251001") == prices_of("claude-haiku-4-5")


def test_a_model_nobody_knows_has_no_price_rather_than_none_to_pay() -> None:
    assert batch_prices("claude-of-tomorrow", at=NOW) is None


def test_a_model_without_a_batch_price_is_not_given_its_standard_price() -> None:
    assert standard_price_of("claude-3-haiku") > 0
    assert batch_prices("claude-3-haiku", at=NOW) is None


def test_a_batch_price_is_unknown_for_the_time_before_it_was_published() -> None:
    assert batch_prices("claude-haiku-5-5", at=datetime(2026, 10, 13, tzinfo=UTC)) is None


def test_a_sum_over_a_million_rows_is_exact(connection: duckdb.DuckDBPyConnection) -> None:
    cost = prices_of("claude-haiku-5-5").sql(
        input_tokens="7",
        output_tokens="NULL",
        cache_read_tokens="1",
        cache_write_5m_tokens="1",
        cache_write_1h_tokens="0",
    )

    total = connection.execute(f"SELECT sum({cost}) FROM range(1_000_000)").fetchall()[0][0]

    assert total == Decimal("0.4175")  # 7 * 0.05 + 0.005 + 0.0625


def test_a_rate_finer_than_the_column_is_rounded_alike_in_sql_and_python(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    fine = Decimal("0.0000005")
    prices = Prices(Rates(fine, fine, fine, fine, fine))

    assert prices.usd(input_tokens=1) == Decimal("1e-12")
    assert cost_in_sql(connection, prices, input_tokens=1) == Decimal("1e-12")


def test_declared_prices_need_only_two_and_leave_the_rest_to_the_usual_parts() -> None:
    assert declared_prices({"input": 2, "output": "10"}).base == Rates(
        input=Decimal(2),
        output=Decimal(10),
        cache_read=Decimal("0.2"),
        cache_write_5m=Decimal("2.5"),
        cache_write_1h=Decimal(4),
        web_search=Decimal(10),
    )
    own = declared_prices({"input": 2, "output": 10, "cache_read": 0, "web_search": 5}).base
    assert (own.cache_read, own.web_search, own.cache_write_5m) == (0, 5, Decimal("2.5"))


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({"input": 1}, "the price of 'output' is missing"),
        ({"input": 1, "output": 1, "thinking": 1}, "'thinking' is none of"),
        ({"input": -1, "output": 1}, "-1 is no price of 'input'"),
        ({"input": 1, "output": "much"}, "'much' is no price of 'output'"),
        ({"input": float("nan"), "output": 1}, "nan is no price"),
        ({"input": True, "output": 1}, "True is no price"),
    ],
)
def test_declared_prices_that_are_none_are_refused(prices: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        declared_prices(prices)


@given(
    model=st.sampled_from(MODELS),
    requests=st.lists(usages(), min_size=1, max_size=4),
    output=st.integers(1, 128_000),
)
def test_no_requests_cost_more_than_the_most(
    model: str, requests: list[dict[str, int]], output: int
) -> None:
    prices = prices_of(model)
    real = [
        {**counts, "output_tokens": min(output, counts["output_tokens"]), "web_searches": 0}
        for counts in requests
    ]
    prompts = [
        sum(v for k, v in counts.items() if k not in ("output_tokens", "web_searches"))
        for counts in real
    ]

    most = prices.most_usd(
        requests=len(real),
        prompt_tokens=sum(prompts),
        largest_prompt=max(prompts),
        output_tokens=output,
        caches=True,
    )

    assert sum((prices.usd(**counts) for counts in real), Decimal(0)) <= most
