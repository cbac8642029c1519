from __future__ import annotations

from datetime import timedelta

import anthropic
import pytest
from simulated import START, Service, params

from dagster_claude_batch.simulator import Simulator

HOUR = timedelta(hours=1)


def test_counts_are_all_processing_until_the_end(service: Service) -> None:
    batch = service.create(*(params() for _ in range(10)))

    service.simulator.advance(timedelta(seconds=59))
    before = service.counts(batch)
    service.simulator.advance(timedelta(seconds=2))

    assert before == {"processing": 10}
    assert service.counts(batch) == {"succeeded": 10}


def test_a_batch_ends_when_its_processing_time_is_over_whoever_looks(service: Service) -> None:
    batch = service.create()
    service.simulator.advance(HOUR)

    ended = service.batches.retrieve(batch.id)

    assert ended.processing_status == "ended"
    assert ended.ended_at == START + timedelta(seconds=60)
    assert ended.results_url == (
        f"https://api.anthropic.com/v1/messages/batches/{batch.id}/results"
    )


def test_processing_takes_a_time_within_its_bounds(service: Service) -> None:
    service.open(processing_seconds=(10, 20))
    for _ in range(30):
        service.create()
    service.simulator.advance(HOUR)

    seconds = [
        (batch.ended_at - batch.created_at).total_seconds()
        for batch in service.simulator.batches()
        if batch.ended_at
    ]

    assert len(set(seconds)) == 30
    assert all(10 <= each <= 20 for each in seconds)


def test_results_come_in_another_order_than_the_requests(service: Service) -> None:
    batch = service.create(*(params() for _ in range(50)))
    service.simulator.end_batches()

    ids = [result.custom_id for result in service.batches.results(batch.id)]

    assert ids != [f"row-{number}" for number in range(50)]
    assert sorted(ids) == sorted(f"row-{number}" for number in range(50))


def test_there_are_no_results_before_the_end(service: Service) -> None:
    batch = service.create()

    with pytest.raises(anthropic.AnthropicError, match="No `results_url`"):
        service.batches.results(batch.id)
    with pytest.raises(anthropic.BadRequestError):
        service.client.get(f"/v1/messages/batches/{batch.id}/results", cast_to=object)


def test_a_cancel_keeps_what_is_finished_and_cancels_the_rest(service: Service) -> None:
    batch = service.create(*(params() for _ in range(100)))
    service.simulator.advance(timedelta(seconds=15))

    canceling = service.batches.cancel(batch.id)
    service.simulator.advance(timedelta(seconds=5))

    assert canceling.processing_status == "canceling"
    assert canceling.cancel_initiated_at == START + timedelta(seconds=15)
    assert canceling.request_counts.processing == 100
    assert service.counts(batch) == {"succeeded": 25, "canceled": 75}
    types = [result["type"] for result in service.results(batch).values()]
    assert types.count("succeeded") == 25
    assert types.count("canceled") == 75
    assert len(service.simulator.bill()) == 25


def test_a_cancel_of_a_canceling_batch_changes_nothing(service: Service) -> None:
    batch = service.create()
    first = service.batches.cancel(batch.id)
    service.simulator.advance(timedelta(seconds=1))

    assert service.batches.cancel(batch.id) == first


def test_a_canceling_batch_keeps_its_canceled_requests_when_batches_are_ended(
    service: Service,
) -> None:
    batch = service.create(params(), params())
    service.batches.cancel(batch.id)

    service.simulator.end_batches()

    assert service.counts(batch) == {"canceled": 2}


def test_a_batch_that_has_ended_cannot_be_canceled(service: Service) -> None:
    batch = service.create()
    service.simulator.end_batches()

    with pytest.raises(anthropic.BadRequestError, match="cannot be canceled"):
        service.batches.cancel(batch.id)


def test_what_is_unprocessed_after_24_hours_expires(service: Service) -> None:
    service.open(processing_seconds=(48 * 3600, 48 * 3600))
    batch = service.create(*(params() for _ in range(10)))

    service.simulator.advance(24 * HOUR)

    assert service.batches.retrieve(batch.id).ended_at == START + 24 * HOUR
    assert service.counts(batch) == {"succeeded": 5, "expired": 5}
    types = sorted(result["type"] for result in service.results(batch).values())
    assert types == ["expired"] * 5 + ["succeeded"] * 5


def test_batches_can_be_ended_without_moving_the_clock(service: Service) -> None:
    service.open(processing_seconds=(48 * 3600, 48 * 3600))
    batch = service.create(params(), params(model="unknown"))

    service.simulator.end_batches()

    assert service.simulator.now() == START
    assert service.batches.retrieve(batch.id).ended_at == START
    assert service.counts(batch) == {"succeeded": 1, "errored": 1}


def test_ending_batches_leaves_alone_what_has_ended(service: Service) -> None:
    batch = service.create()
    service.simulator.advance(HOUR)
    before = service.batches.retrieve(batch.id)

    service.simulator.end_batches()

    assert service.batches.retrieve(batch.id) == before


def test_results_are_archived_29_days_after_creation(service: Service) -> None:
    batch = service.create()
    service.simulator.advance(timedelta(days=29) - timedelta(seconds=1))
    assert len(service.results(batch)) == 1

    service.simulator.advance(timedelta(seconds=1))

    archived = service.batches.retrieve(batch.id)
    assert archived.archived_at == START + timedelta(days=29)
    assert archived.results_url is None
    with pytest.raises(anthropic.NotFoundError):
        service.client.get(f"/v1/messages/batches/{batch.id}/results", cast_to=object)


def test_a_batch_is_deleted_only_after_its_end(service: Service) -> None:
    batch = service.create()
    with pytest.raises(anthropic.BadRequestError, match="cannot be deleted"):
        service.batches.delete(batch.id)

    service.simulator.end_batches()
    deleted = service.batches.delete(batch.id)

    assert (deleted.id, deleted.type) == (batch.id, "message_batch_deleted")
    assert service.simulator.batches() == []
    assert service.batches.list().data == []
    with pytest.raises(anthropic.NotFoundError):
        service.batches.retrieve(batch.id)
    with pytest.raises(anthropic.NotFoundError):
        service.batches.delete(batch.id)


def test_a_deleted_batch_leaves_nothing_but_its_bill(service: Service) -> None:
    batch = service.create()
    service.simulator.end_batches()
    before = service.simulator.bill()

    service.batches.delete(batch.id)

    assert service.simulator.bill() == before
    assert [path.name for path in (service.path / "batches" / batch.id).iterdir()] == ["bill.jsonl"]


def test_the_list_pages_from_the_newest_to_the_oldest(service: Service) -> None:
    ids = [service.create().id for _ in range(7)][::-1]

    page = service.batches.list(limit=3)

    assert [batch.id for batch in page.data] == ids[:3]
    assert (page.has_more, page.first_id, page.last_id) == (True, ids[0], ids[2])
    assert [batch.id for batch in page] == ids


def test_the_list_pages_back_from_a_batch(service: Service) -> None:
    ids = [service.create().id for _ in range(5)][::-1]

    page = service.batches.list(limit=2, before_id=ids[4])

    assert [batch.id for batch in page.data] == ids[2:4]
    assert page.has_more
    assert not service.batches.list(limit=4, before_id=ids[4]).has_more


def test_a_deleted_batch_is_still_a_place_in_the_list(service: Service) -> None:
    ids = [service.create().id for _ in range(3)][::-1]
    service.simulator.end_batches()
    service.batches.delete(ids[1])

    assert [batch.id for batch in service.batches.list(after_id=ids[1]).data] == ids[2:]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=-1", "after_id=unknown", "after_id=a&before_id=b"],
)
def test_a_list_that_asks_for_nonsense_is_refused(service: Service, query: str) -> None:
    with pytest.raises(anthropic.BadRequestError):
        service.client.get(f"/v1/messages/batches?{query}", cast_to=object)


def test_an_empty_list_has_no_ends(service: Service) -> None:
    page = service.batches.list(limit=1000)

    assert (page.data, page.has_more, page.first_id, page.last_id) == ([], False, None, None)


def test_the_clock_is_shared_by_all_who_open_the_directory(service: Service) -> None:
    other = Simulator(service.path, now=lambda: START)

    other.advance(3 * HOUR)

    assert service.simulator.now() == START + 3 * HOUR


def test_the_clock_does_not_run_back(service: Service) -> None:
    with pytest.raises(ValueError, match="cannot go back"):
        service.simulator.advance(-HOUR)
