"""What usage says about a declaration; and nothing where all is well."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from dagster_claude_batch import build_claude_batch_asset
from dagster_claude_batch.advice import Use, advise
from dagster_claude_batch.batch_asset import batch_asset
from dagster_claude_batch.declaration import Declaration


class Mood(BaseModel):
    mood: str


LONG = "Consider all of the following with care. " * 100
"""About 1,000 tokens that all rows share."""


def declared(**declared: Any) -> Declaration:
    arguments = {"source": "t", "row_key": "id", "prompt": "{{ text }}", "max_tokens": 256}
    asset = batch_asset(build_claude_batch_asset("moods", **{**arguments, **declared}))
    assert asset is not None
    return asset.declaration


def use(**changed: Any) -> Use:
    usual = {
        "requests": 1_000,
        "bytes_each": 400.0,
        "prompt_tokens_each": 100.0,
        "median_output_tokens": 60,
        "p99_output_tokens": 100,
        "cost_usd": Decimal("0.02"),
    }
    return Use(**{**usual, **changed})


def test_nothing_is_said_where_all_is_well() -> None:
    assert list(advise(declared(), use())) == []


@pytest.mark.parametrize(
    ("p99", "max_tokens", "said"),
    [
        (64, 256, "`max_tokens=128`"),
        (65, 256, None),  # a quarter is not far too large
        (10, 1_024, "`max_tokens=64`"),
        (10, 64, None),
        (1_000, 128_000, "`max_tokens=2048`"),
    ],
)
def test_far_more_room_than_answers_take(p99: int, max_tokens: int, said: str | None) -> None:
    advice = list(advise(declared(max_tokens=max_tokens), use(p99_output_tokens=p99)))

    assert [said in each for each in advice if said] == ([True] if said else [])
    assert len(advice) == (1 if said else 0)


def test_answers_that_are_cut_off_are_paid_twice() -> None:
    (advice,) = advise(declared(), use(cut_off=10, p99_output_tokens=256))

    assert advice.startswith("1.0% of the answers were cut off")
    assert "`max_tokens=512`" in advice
    assert list(advise(declared(), use(cut_off=9, p99_output_tokens=256))) == []


def test_few_requests_say_nothing() -> None:
    assert list(advise(declared(), use(requests=99, cut_off=99, p99_output_tokens=1))) == []


def test_what_all_rows_share_may_be_sent_once_for_several_of_them() -> None:
    shared = declared(system=LONG[:1_000], output=Mood)

    (advice,) = advise(shared, use(bytes_each=1_500.0, prompt_tokens_each=400.0))

    assert advice.startswith("What all rows share is sent once a row. `rows_per_request=10` would")
    saved = Decimal(str(advice.split("up to ")[1].split(" USD")[0]))
    assert 0 < saved < Decimal("0.018")  # nine tenths of 1,000 prompts of 400 tokens
    assert list(advise(declared(system=LONG[:1_000], rows_per_request=5), use())) == []


def test_what_cannot_be_packed_is_not_said_to_be() -> None:
    asset = declared(system=LONG, prompt=lambda _: "How are you?")

    assert list(advise(asset, use(bytes_each=5_000.0, prompt_tokens_each=1_200.0))) == []


def test_what_all_rows_share_may_be_cached_if_it_is_long_enough() -> None:
    examples = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    params = {"messages": examples}  # cannot be packed
    long, short = declared(system=LONG, params=params), declared(system="Rate.", params=params)

    (advice,) = advise(long, use(bytes_each=5_000.0, prompt_tokens_each=1_200.0))

    assert advice.startswith('`cache="1h"` would')
    assert list(advise(short, use())) == []
    assert list(advise(declared(system=LONG, params=params, cache="1h"), use())) == []


def test_without_a_price_only_tokens_are_spoken_of() -> None:
    unknown = declared(model="claude-of-tomorrow", system=LONG)

    assert list(advise(unknown, use(cost_usd=None))) == []
