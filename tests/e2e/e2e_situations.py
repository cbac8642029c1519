"""What Dagster shows of an asset in each situation, and the table that is made of it.

Tests `record` what they have seen, and asserted, in the file that ``SITUATIONS`` names.
``PYTHONPATH=.:e2e python -m e2e_situations FILE…``, in ``tests/``, prints the table.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import dagster as dg
from dagster_storage import STORAGE

ROWS: Final = (
    "partitions",
    "backfill policy",
    "in one run",
    "automation",
    "schedule",
    "cancelled",
    "code location and daemons",
    "killed",
    "at once",
    "tag limits",
    "terminate all",
    "collecting fails",
    "instance",
    "partly failing",
    "many",
    "several locations",
    "limit and dry_run",
    "pilot",
)
"""What a situation's name begins with, in the order of the table."""

_STATUSES: Final = ("materialized", "materializing", "failed", "missing")


@dataclass(frozen=True)
class Shown:
    """What there is to see of one asset at one moment.

    ``partitions`` counts the statuses of its partitions, or of the asset if it has none; a status
    that no partition has is left out. ``backfill`` is the status of the backfill that was asked
    about. ``started`` are runs that occupy a process and a slot, ``queued`` those that do not.
    ``batches_out`` have not ended.
    """

    partitions: Mapping[str, int]
    backfill: str | None = None
    started: int = 0
    queued: int = 0
    batches_out: int = 0

    def __str__(self) -> str:
        ordered = sorted(self.partitions.items(), key=lambda counted: _STATUSES.index(counted[0]))
        counted = ", ".join(f"{number} {status}" for status, number in ordered)
        backfill = [f"backfill {self.backfill}"] if self.backfill else []
        runs = f"{self.started} started, {self.queued} queued"
        return "; ".join([counted, *backfill, runs, f"{self.batches_out} out"])


def record(situation: str, while_waiting: Shown, at_the_end: Shown) -> None:
    """Note what was shown in a situation, named ``<row>: <variant>``, for the table.

    Raises:
        ValueError: The name begins with no row of the table.
    """
    if situation.partition(":")[0] not in ROWS:
        raise ValueError(f"{situation!r} begins with none of {', '.join(ROWS)}")
    file = os.environ.get("SITUATIONS")
    if not file:
        return
    noted = {
        "situation": situation,
        "dagster": dg.__version__,
        "storage": STORAGE,
        "while_waiting": asdict(while_waiting),
        "at_the_end": asdict(at_the_end),
    }
    with Path(file).open("a") as lines:
        lines.write(json.dumps(noted) + "\n")


def table(noted: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table: one line for each thing shown, and where it was shown so."""
    where: dict[tuple[str, str, str], set[str]] = {}
    for each in noted:
        shown = [str(Shown(**each[moment])) for moment in ("while_waiting", "at_the_end")]
        seen = where.setdefault((each["situation"], *shown), set())
        seen.add(f"{each['dagster']} {each['storage']}")
    heading = ("situation", "while it waits", "at the end", "Dagster")
    lines = [(*key, ", ".join(sorted(where[key]))) for key in sorted(where, key=_place)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, ("---",) * 4, *lines))


def unseen(noted: Iterable[Mapping[str, Any]]) -> str:
    """The rows of the table of which nothing was recorded, or not everywhere; one line for each."""
    where: dict[str, set[str]] = {row: set() for row in ROWS}
    for each in noted:
        seen = where[each["situation"].partition(":")[0]]
        seen.add(f"{each['dagster']} {each['storage']}")
    everywhere = set[str]().union(*where.values())
    return "\n".join(
        f"Nothing was recorded of: {row}" + (f" ({', '.join(sorted(lacking))})" if seen else "")
        for row, seen in where.items()
        if (lacking := everywhere - seen) or not seen
    )


def _place(key: tuple[str, str, str]) -> tuple[int, tuple[str, str, str]]:
    return ROWS.index(key[0].partition(":")[0]), key


def main(files: Sequence[str]) -> None:
    noted = [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    sys.stdout.write(f"{table(noted)}\n\n{unseen(noted)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
