"""Where a sensor's cursor is kept between ticks.

Dagster stores a tick's cursor with each tick, for days: with 1,000 held runs, 40 KB every 30
seconds. So a tick carries only what changes often, and all else stands once, where Dagster's
daemons keep their cursors.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import dagster as dg

from dagster_claude_batch.sensor.cursor import Cursor

_IN_THE_TICK: Final = frozenset({"last_look"})


@dataclass
class Memory:
    """The cursor of one sensor; ``name`` is no other's in the instance."""

    instance: dg.DagsterInstance
    name: str
    _known: str | None = field(default=None, init=False)

    def recall(self, text: str | None) -> Cursor:
        """The cursor, of which ``text`` is what the last tick carried: a part, or all."""
        cursor = Cursor.load(text)
        if text and _fields(text) > _IN_THE_TICK:
            return cursor
        self._known = self._stored()
        rest = Cursor.load(self._known)
        rest.last_look = cursor.last_look
        return rest

    def keep(self, cursor: Cursor) -> str:
        """Store the cursor; what the tick is to carry, which is all where that fails."""
        fields = asdict(cursor)
        rest = json.dumps({name: fields[name] for name in fields if name not in _IN_THE_TICK})
        if rest != self._known and not self._store(rest):
            return cursor.dump()
        return json.dumps({name: fields[name] for name in _IN_THE_TICK})

    def _stored(self) -> str | None:
        storage: Any = getattr(self.instance, "daemon_cursor_storage", None)
        return storage.get_cursor_values({self.name}).get(self.name) if storage else None

    def _store(self, text: str) -> bool:
        try:
            storage: Any = getattr(self.instance, "daemon_cursor_storage", None)
            if storage is None:
                return False
            storage.set_cursor_values({self.name: text})
        except Exception:  # noqa: BLE001  # e.g. MySQL's TEXT ends at 64 KB; the tick can carry it
            return False
        return True


def _fields(text: str) -> frozenset[str]:
    try:
        return frozenset(json.loads(text))
    except (TypeError, ValueError):
        return frozenset()
