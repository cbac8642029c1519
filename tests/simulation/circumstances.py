"""How large and how unkind a world is: drawn once for each seed."""

from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import Final

EVENTS: Final = {
    "change": 6,
    "add": 3,
    "remove": 3,
    "end batches": 6,
    "minutes": 6,
    "hours": 6,
    "day": 2,
    "month": 1,
    "cancel batch": 2,
    "delete batch": 1,
    "terminate": 2,
    "interrupt": 2,
    "settle": 2,
    "launch": 5,
    "retry": 3,
    "wake": 10,
    "wake early": 2,
}
"""What happens outside the engine, and how often beside each other."""


@dataclass(frozen=True)
class Circumstances:
    """How large and how unkind a world is; drawn once for each seed."""

    rows: int
    chunk_size: int
    window: int
    bad_share: float
    skew: timedelta
    hides: bool
    strays: bool
    max_wait_hours: float | None
    crash: float
    fault: float
    switch: float
    event: float
    length: int
    events: frozenset[str]
    favourite: str = ""
    """What befalls a call wherever it can, if anything does: how the name of a fault begins."""
    clocks_differ: bool = False
    """Each process is on a machine with a clock of its own."""
    reloads: bool = False
    """Its source is truncated and loaded again, instead of losing single rows."""
    pilot: int | None = None
    """So many rows are sent before the others."""
    cap: float | None = None
    """What each materialization may spend, in USD; that of the last one, which asks what others
    have left, is endless."""


FAVOURITES: Final = (
    "",
    "answered 413",
    "answered 429",
    "create delivered twice",
    "create long delayed",
    "call delayed",
    "call lost (Connect",
)

_PILOTED: Final = 12
"""Of 16 seeds the one whose materializations begin with a pilot."""

_CAPPED: Final = 5
"""Of 16 seeds the one whose materializations have a cap: of one to five requests at a time."""

_HASTY: Final = frozenset({"terminate", "interrupt", "delete batch", "cancel batch", "settle"})


def circumstances_of(seed: int) -> Circumstances:
    """How unkind the world of a seed is: some faults often, some never."""
    random = Random(f"circumstances {seed}")
    events = {name for name in EVENTS if random.random() < 0.7} | {"end batches", "launch", "wake"}
    return Circumstances(
        rows=random.randint(2, 10),
        chunk_size=random.randint(2, 5),
        window=random.choice([4, 6, 100]),
        bad_share=random.choice([0.0, 0.2, 0.5]),
        skew=timedelta(minutes=random.choice([0, 0, 0, -4, 4])),
        hides=random.random() < 0.5,
        strays=(strays := random.random() < 0.15),
        max_wait_hours=random.choice([None, None, None, 3.0]),
        crash=random.choice([0.0, 0.02, 0.04, 0.08]),
        fault=random.choice([0.0, 0.1, 0.3, 0.5]),
        switch=random.choice([0.0, 0.1, 0.5]),
        event=random.choice([0.0, 0.05, 0.15]),
        length=random.randint(4, 14),
        events=frozenset(events - {"day", "month"} if strays else events),
        reloads=random.random() < 0.2,
        clocks_differ=random.random() < 0.25,
        pilot=1 + seed % 3 if seed % 16 == _PILOTED else None,
        cap=(0.0004, 0.0009, 0.0016)[seed // 16 % 3] if seed % 16 == _CAPPED else None,
    )


def unkind(circumstances: Circumstances, seed: int) -> Circumstances:
    """The same world with what is rare, of which each seed has other things often; no crashes."""
    favourite = FAVOURITES[seed % len(FAVOURITES)]
    is_hasty = seed % 3 == 1
    everything = frozenset(EVENTS) - {"day", "month"}
    return replace(
        circumstances,
        rows=6 + seed % 5,
        crash=0.0,
        fault=0.3,
        switch=0.3,
        event=0.15 if is_hasty else 0.1,
        length=14,
        bad_share=0.5,
        hides=seed % 2 == 0,
        strays=favourite.startswith("create"),
        max_wait_hours=None,
        reloads=False,
        events=_HASTY | {"launch", "wake", "end batches", "hours"} if is_hasty else everything,
        favourite=favourite,
    )
