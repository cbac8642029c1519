"""What requests cost, in USD.

Rates come from `genai_prices` once per model and become arithmetic: asking it for every
row would take longer than writing the row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from functools import lru_cache

from genai_prices import Usage, calc_price
from genai_prices.types import ModelPrice, Tier, TieredPrices

USD_TYPE = "DECIMAL(18, 12)"
TOTAL_USD_TYPE = "DECIMAL(38, 12)"
"""Of one request, and of many."""

STANDARD = 2
"""The standard price of tokens is so many times that in a batch."""

_PICO_USD = Decimal("1e-12")
_UNITS = {"web_search": 1_000}  # all others are priced per million

# Where a rate is found: the first of these that has a price, as genai_prices itself falls
# back from the special kind of token to the general one.
_PRICE_KEYS = {
    "input": ("input_mtok",),
    "output": ("output_mtok",),
    "cache_read": ("cache_read_mtok", "input_mtok"),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok", "input_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok", "cache_write_mtok", "input_mtok"),
    "web_search": ("web_searches_kcount",),
}


@dataclass(frozen=True)
class Rates:
    """USD per million tokens, and per thousand web searches."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal
    web_search: Decimal = Decimal(0)


@dataclass(frozen=True)
class Prices:
    """Rates of one model by prompt size.

    ``tiers`` are pairs of a prompt size in tokens, cached ones included, and the rates for
    *all* tokens of a request whose prompt is larger than that; sizes ascend.
    """

    base: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()

    def sql(
        self,
        *,
        input_tokens: str,
        output_tokens: str,
        cache_read_tokens: str,
        cache_write_5m_tokens: str,
        cache_write_1h_tokens: str,
        web_searches: str = "0",
    ) -> str:
        """Return a DuckDB expression for the cost of one request as ``DECIMAL(18, 12)``.

        Takes SQL expressions for the counts as the API reports them (``input_tokens``
        without cached tokens); NULL counts as 0. Exact to a millionth of a millionth of a
        dollar, so a sum over any number of rows is exact too.
        """
        counts = {
            "input": _count(input_tokens),
            "output": _count(output_tokens),
            "cache_read": _count(cache_read_tokens),
            "cache_write_5m": _count(cache_write_5m_tokens),
            "cache_write_1h": _count(cache_write_1h_tokens),
            "web_search": _count(web_searches),
        }
        prompt = f"({' + '.join(counts[kind] for kind in _PROMPT)})"
        cases = [
            f"WHEN {prompt} > {start} THEN {_sum_sql(rates, counts)}"
            for start, rates in reversed(self.tiers)
        ]
        base = _sum_sql(self.base, counts)
        cost = f"CASE {' '.join(cases)} ELSE {base} END" if cases else base
        return f"CAST({cost} AS {USD_TYPE})"

    def usd(
        self,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cache_read_tokens: int | None = None,
        cache_write_5m_tokens: int | None = None,
        cache_write_1h_tokens: int | None = None,
        web_searches: int | None = None,
    ) -> Decimal:
        """Return the cost of one request, equal to what `sql` gives."""
        counts = {
            "input": input_tokens or 0,
            "output": output_tokens or 0,
            "cache_read": cache_read_tokens or 0,
            "cache_write_5m": cache_write_5m_tokens or 0,
            "cache_write_1h": cache_write_1h_tokens or 0,
            "web_search": web_searches or 0,
        }
        rates = self._rates_for(sum(counts[kind] for kind in _PROMPT))
        cost = sum((counts[kind] * rate for kind, rate in _per_unit(rates)), Decimal(0))
        return cost.quantize(_PICO_USD, rounding=ROUND_HALF_UP)

    def most_usd(
        self,
        *,
        requests: int,
        prompt_tokens: int,
        largest_prompt: int,
        output_tokens: int,
        caches: bool,
    ) -> Decimal:
        """Return what requests cost at the most, with so many tokens of prompt in all.

        ``output_tokens`` are of each; ``caches``: the prompts may be written to the cache. Where
        the largest of them may be in a higher tier, all are taken to be.
        """
        tiers = [self.base, *(rates for start, rates in self.tiers if largest_prompt > start)]
        kinds = ("input", "cache_write_5m", "cache_write_1h") if caches else ("input",)
        dearest = max(getattr(each, kind) for each in tiers for kind in kinds)
        answers = requests * output_tokens * max(each.output for each in tiers)
        return ((prompt_tokens * dearest + answers) / 1_000_000).quantize(_PICO_USD)

    def _rates_for(self, prompt_tokens: int) -> Rates:
        applicable = [rates for start, rates in self.tiers if prompt_tokens > start]
        return applicable[-1] if applicable else self.base


_PROMPT = ("input", "cache_read", "cache_write_5m", "cache_write_1h")


def batch_prices(model: str, *, at: datetime | None = None) -> Prices | None:
    """Look up what a model costs in a batch, now or at a time (naive: UTC).

    None when the model is unknown, or when no batch price is known for that time: then the
    cost is unknown, which is NULL and never 0.
    """
    return _batch_prices(model, (at or datetime.now(UTC)).replace(second=0, microsecond=0))


@lru_cache(maxsize=64)
def _batch_prices(model: str, at: datetime) -> Prices | None:
    """The same for a minute, in which it is asked several times for each chunk."""
    batch = _model_price(model, at, {"processing": "batch"})
    # Without a batch price, genai_prices answers with the standard price and no warning.
    if batch is None or batch == _model_price(model, at, {}):
        return None
    return _prices(batch)


def declared_prices(prices: Mapping[str, Decimal | float | str]) -> Prices:
    """Make `Prices` of what somebody pays in batches: USD by kind of token, as `Rates` has them.

    ``input`` and ``output`` are needed. Where they are left out, a cache read costs a tenth of
    ``input``, a write for five minutes 1.25 and one for an hour 2 times as much, and 1,000 web
    searches 10 USD, as in Anthropic's own list.

    Raises:
        ValueError: A price is missing, unknown, or no price; the message says which.
    """
    known = {kind.name for kind in fields(Rates)}
    unknown = sorted(set(prices) - known)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(sorted(known))}")
    given = {name: _price(name, value) for name, value in prices.items()}
    for name in ("input", "output"):
        if name not in given:
            raise ValueError(f"the price of {name!r} is missing")
    usual = {name: given["input"] * times for name, times in _TIMES_INPUT.items()}
    return Prices(Rates(**{**usual, "web_search": _WEB_SEARCHES, **given}))


_TIMES_INPUT = {
    "cache_read": Decimal("0.1"),
    "cache_write_5m": Decimal("1.25"),
    "cache_write_1h": Decimal(2),
}
_WEB_SEARCHES = Decimal(10)


def _price(name: str, value: Decimal | float | str) -> Decimal:
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        price = Decimal("NaN")
    if isinstance(value, bool) or not price.is_finite() or price < 0:
        raise ValueError(f"{value!r} is no price of {name!r} in USD")
    return price


def sum_if_known(expression: str) -> str:
    """Return a DuckDB aggregate: the sum, or NULL as soon as one value is unknown."""
    return f"CASE WHEN count(*) = count({expression}) THEN sum({expression}) END"


def _model_price(model: str, at: datetime | None, context: dict[str, str]) -> ModelPrice | None:
    try:
        calculation = calc_price(
            Usage(input_tokens=1, output_tokens=1),
            model_ref=model,
            provider_id="anthropic",
            genai_request_timestamp=at,
            price_context=context,
        )
    except LookupError:
        return None
    return calculation.model_price


def _prices(price: ModelPrice) -> Prices:
    listed = {kind: _listed_price(price, kind) for kind in _PRICE_KEYS}
    starts = {tier.start for rate in listed.values() for tier in _tiers(rate)}
    return Prices(
        base=_rates(listed, prompt_tokens=0),
        tiers=tuple((start, _rates(listed, prompt_tokens=start + 1)) for start in sorted(starts)),
    )


def _listed_price(price: ModelPrice, kind: str) -> Decimal | TieredPrices | None:
    listed = (getattr(price, key) for key in _PRICE_KEYS[kind])
    return next((rate for rate in listed if rate is not None), None)


def _tiers(rate: Decimal | TieredPrices | None) -> list[Tier]:
    return rate.tiers if isinstance(rate, TieredPrices) else []


def _rates(listed: dict[str, Decimal | TieredPrices | None], *, prompt_tokens: int) -> Rates:
    return Rates(**{kind: _rate_at(rate, prompt_tokens) for kind, rate in listed.items()})


def _rate_at(rate: Decimal | TieredPrices | None, prompt_tokens: int) -> Decimal:
    if isinstance(rate, TieredPrices):
        reached = [tier.price for tier in rate.tiers if prompt_tokens > tier.start]
        return reached[-1] if reached else rate.base
    return Decimal(0) if rate is None else rate


def _per_unit(rates: Rates) -> list[tuple[str, Decimal]]:
    return [
        (kind.name, getattr(rates, kind.name) / _UNITS.get(kind.name, 1_000_000))
        for kind in fields(rates)
    ]


def _count(expression: str) -> str:
    return f"coalesce(CAST({expression} AS BIGINT), 0)"


def _sum_sql(rates: Rates, counts: dict[str, str]) -> str:
    """Add up in decimals: a BIGINT times a rate in full digits loses nothing."""
    return " + ".join(f"{counts[kind]} * {rate:f}" for kind, rate in _per_unit(rates))
