"""What a sensor remembers from tick to tick, and where."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import dagster as dg
import pytest
from queue_kit import hold

from dagster_claude_batch import LocalClaudeBatchResource, build_claude_batch_sensor
from dagster_claude_batch.sensor.cursor import Cursor
from dagster_claude_batch.sensor.memory import Memory
from dagster_claude_batch.workbench import Waiting

MANY = Cursor(
    1.5,
    held=[str(uuid4()) for _ in range(1_000)],
    ended={"b": 2.0},
    landing="landing:1",
    progress={"c": 5},
)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def test_a_tick_carries_little_however_much_there_is_to_remember(
    instance: dg.DagsterInstance,
) -> None:
    carried = Memory(instance, "mine").keep(MANY)

    assert len(MANY.dump()) > 40_000
    assert len(carried) < 100
    assert Memory(instance, "mine").recall(carried) == MANY
    assert Memory(instance, "another's").recall(carried) == Cursor(1.5)


def test_a_cursor_of_an_earlier_version_is_read_whole(instance: dg.DagsterInstance) -> None:
    Memory(instance, "mine").keep(Cursor(held=["older"]))

    assert Memory(instance, "mine").recall(MANY.dump()) == MANY


@pytest.mark.parametrize("text", [None, "", "no json", "[1]"])
def test_who_resets_the_cursor_makes_it_forget_nothing_but_its_last_look(
    instance: dg.DagsterInstance, text: str | None
) -> None:
    Memory(instance, "mine").keep(Cursor(7.0, held=["a"]))

    assert Memory(instance, "mine").recall(text) == Cursor(held=["a"])


def test_where_it_cannot_be_stored_the_tick_carries_all() -> None:
    memory = Memory(cast("Any", Unwritable()), "mine")

    assert memory.recall(memory.keep(MANY)) == MANY


class Unwritable:
    """An instance whose storage refuses."""

    @property
    def daemon_cursor_storage(self) -> "Unwritable":
        return self

    def set_cursor_values(self, pairs: dict[str, str]) -> None:
        raise OverflowError(len(pairs))


def test_a_held_run_that_was_deleted_between_two_ticks_is_noticed(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    claude = LocalClaudeBatchResource(path=str(tmp_path))
    sensor = build_claude_batch_sensor("remembers")
    cursor: str | None = Cursor(landed_at=claude.now().timestamp()).dump()
    run_ids = [hold(instance, Waiting(("a",), 1)) for _ in range(2)]
    for _ in range(2):
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"claude_batch": claude}
        ) as context:
            cursor = sensor.evaluate_tick(context).cursor
            recalled = Memory(instance, "dagster_claude_batch///remembers").recall(cursor)
        if instance.has_run(run_ids[0]):
            instance.delete_run(run_ids[0])

    assert recalled.held == [run_ids[1]]
    assert list(recalled.ended) == [run_ids[0]]
