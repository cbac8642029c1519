from __future__ import annotations

from datetime import timedelta
from typing import Any

import anthropic
import pytest
from simulated import Service, params

LONG = "The rules of the house. " * 100


def cached(text: str = LONG, *, ttl: str | None = None) -> list[dict[str, Any]]:
    control = {"type": "ephemeral"} if ttl is None else {"type": "ephemeral", "ttl": ttl}
    return [{"type": "text", "text": text, "cache_control": control}]


def usages(service: Service, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [row["message"]["usage"] for row in service.ask(*rows)]


def test_tokens_are_about_a_quarter_of_the_characters(service: Service) -> None:
    service.open(answer=lambda _: "y" * 40)

    (usage,) = usages(service, params(messages=[{"role": "user", "content": "x" * 4_000}]))

    assert 1_000 <= usage["input_tokens"] <= 1_020
    assert usage["output_tokens"] == 10
    assert usage["service_tier"] == "batch"


def test_the_first_request_writes_the_cache_and_later_ones_read_it(service: Service) -> None:
    first, second = usages(service, params(system=cached()), params(system=cached()))

    assert first["cache_creation_input_tokens"] == 600
    assert first["cache_read_input_tokens"] == 0
    assert second["cache_creation_input_tokens"] == 0
    assert second["cache_read_input_tokens"] == 600
    assert first["input_tokens"] == second["input_tokens"]


@pytest.mark.parametrize(("ttl", "name"), [(None, "5m"), ("5m", "5m"), ("1h", "1h")])
def test_writes_are_broken_down_by_lifetime(service: Service, ttl: str | None, name: str) -> None:
    (usage,) = usages(service, params(system=cached(ttl=ttl)))

    assert usage["cache_creation"][f"ephemeral_{name}_input_tokens"] == 600
    assert sum(usage["cache_creation"].values()) == 600


@pytest.mark.parametrize(("minutes", "read"), [(4, 600), (6, 0)])
def test_a_prefix_lives_as_long_as_its_lifetime(service: Service, minutes: int, read: int) -> None:
    usages(service, params(system=cached()))

    service.simulator.advance(timedelta(minutes=minutes))
    (usage,) = usages(service, params(system=cached()))

    assert usage["cache_read_input_tokens"] == read


def test_reading_a_prefix_keeps_it_alive(service: Service) -> None:
    for _ in range(3):
        (usage,) = usages(service, params(system=cached()))
        service.simulator.advance(timedelta(minutes=4))

    assert usage["cache_read_input_tokens"] == 600


def test_a_longer_prefix_reads_the_shorter_and_writes_the_rest(service: Service) -> None:
    question = [{"role": "user", "content": cached("Why? " * 80)}]

    _, usage = usages(service, params(system=cached()), params(system=cached(), messages=question))

    assert usage["cache_read_input_tokens"] == 600
    assert usage["cache_creation_input_tokens"] == 103


def test_a_short_prefix_is_silently_not_cached(service: Service) -> None:
    for usage in usages(service, *[params(system=cached("Be brief."))] * 2):
        assert usage["cache_creation_input_tokens"] == usage["cache_read_input_tokens"] == 0


def test_models_have_caches_of_their_own(service: Service) -> None:
    _, usage = usages(
        service, params(system=cached()), params(system=cached(), model="claude-opus-5-5")
    )

    assert usage["cache_read_input_tokens"] == 0


def test_all_input_tokens_are_those_that_count_tokens_counts(service: Service) -> None:
    row = params(system=cached())
    counted = service.client.messages.count_tokens(
        model=row["model"], system=row["system"], messages=row["messages"]
    )

    (usage,) = usages(service, row)

    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(usage[name] for name in names) == counted.input_tokens


def test_errored_rows_are_neither_billed_nor_cached(service: Service) -> None:
    errored, usage = service.ask(params(system=cached(), max_tokens=0), params(system=cached()))

    assert errored["type"] == "errored"
    assert usage["message"]["usage"]["cache_read_input_tokens"] == 0
    assert [billed.custom_id for billed in service.simulator.bill()] == ["row-1"]


def test_the_bill_holds_what_the_results_say(service: Service) -> None:
    batch = service.create(params(), params(model="claude-sonnet-5-5"))
    assert service.simulator.bill() == []
    service.simulator.end_batches()

    billed = {each.custom_id: each for each in service.simulator.bill()}

    for custom_id, result in service.results(batch).items():
        assert billed[custom_id].batch_id == batch.id
        assert billed[custom_id].usage == result["message"]["usage"]
        assert billed[custom_id].model == result["message"]["model"]


def test_counting_tokens_of_an_unknown_model_is_not_found(service: Service) -> None:
    with pytest.raises(anthropic.NotFoundError):
        service.client.messages.count_tokens(
            model="unknown", messages=[{"role": "user", "content": "hi"}]
        )


def test_counting_tokens_of_no_messages_is_refused(service: Service) -> None:
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        service.client.messages.count_tokens(model="claude-haiku-5-5", messages=[])


def test_every_model_parses_with_all_its_capabilities(service: Service) -> None:
    models = list(service.client.models.list(limit=2))

    assert len(models) == 5
    for model in models:
        assert type(model).model_validate(model.model_dump()) == model
        assert model.capabilities is not None
        assert service.client.models.retrieve(model.id) == model


def test_a_retired_model_says_so(service: Service) -> None:
    model = service.client.models.retrieve("claude-3-haiku-20240307")

    assert model.lifecycle == "retired"
    assert model.retires_at is not None


def test_an_unknown_model_is_not_found(service: Service) -> None:
    with pytest.raises(anthropic.NotFoundError):
        service.client.models.retrieve("claude-haiku-9")
