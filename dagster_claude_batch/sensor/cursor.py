"""What one tick of the sensor tells the next."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast


@dataclass
class Cursor:
    """What one tick tells the next; moments in seconds since 1970.

    ``held`` are the held runs last seen unfinished, ``ended`` runs that ended with something out,
    and when that was noticed. ``unseen`` are batches that the API does not show although it shows
    others, and since when. ``land_at`` is when to ask for a landing run, ``landing`` the one
    that was asked for, and ``landing_for`` the runs that it was told of. ``landed_at`` is when one
    was last asked for, or the first tick of all. ``progress`` is how
    many tenths of its batches had ended when that was last said of a held run.
    """

    last_look: float = 0.0
    held: list[str] = field(default_factory=list[str])
    ended: dict[str, float] = field(default_factory=dict[str, float])
    pools: dict[str, float] = field(default_factory=dict[str, float])
    land_at: float | None = None
    landing: str | None = None
    unseen: dict[str, float] = field(default_factory=dict[str, float])
    landing_for: list[str] = field(default_factory=list[str])
    progress: dict[str, int] = field(default_factory=dict[str, int])
    landed_at: float | None = None

    @classmethod
    def load(cls, text: str | None) -> "Cursor":
        """Read a cursor, of any version; one that cannot be read is started anew.

        Held runs that were deleted are then known to the ledger alone, which a landing run reads.
        """
        try:
            written: Any = json.loads(text or "{}")
        except ValueError:
            return cls()
        known = {each.name for each in fields(cls)}
        told = cast("dict[str, Any]", written) if isinstance(written, dict) else {}
        return cls(**{name: value for name, value in told.items() if name in known})

    def dump(self) -> str:
        """Write the cursor."""
        return json.dumps(asdict(self))
