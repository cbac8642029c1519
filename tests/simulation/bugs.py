"""Deliberate bugs: for each invariant some that the simulation must find.

``python -m simulation.bugs`` puts each into a copy of the package and prints which seed found it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simulation.boundaries import PACKAGE
from simulation.oracle import INVARIANTS

_TESTS: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bug:
    """A small change of one module, what it breaks, and within how many seeds that is found."""

    name: str
    invariant: str
    module: str
    old: str
    new: str
    seeds: int


BUGS: Final = (
    Bug(
        "a retry does not count as another attempt",
        "a",
        "due",
        "THEN 0 ELSE 1 END AS attempt",
        "THEN 0 ELSE 0 END AS attempt",
        20,
    ),
    Bug(
        "the SDK may repeat a create",
        "b",
        "resource",
        '"max_retries": 0,',
        '"max_retries": 2,',
        30,
    ),
    Bug(
        "a chunk in doubt is given up at once",
        "b",
        "doubt",
        "return Unsettled(settled)  # until then, another one may not show yet",
        "return NotFound()",
        100,
    ),
    Bug(
        "rows that are out are planned again",
        "b",
        "due",
        "AND list_contains($out, state) AND NOT is_copy\n",
        "AND list_contains($out, state) AND false\n",
        150,
    ),
    Bug(
        "answers that departed are not given back",
        "b",
        "settling",
        "_let_rows_depart(plan)\n    if not plan.materialization.config.refresh:",
        "_let_rows_depart(plan)\n    if plan.materialization.config.refresh:",
        150,
    ),
    Bug(
        "answers that depart are thrown away",
        "b",
        "departed",
        'f"FROM {answers} AS here WHERE {condition}"',
        'f"FROM {answers} AS here WHERE {condition} AND false"',
        40,
    ),
    Bug(
        "the first answer of a chunk is not written",
        "c",
        "landing",
        "WHERE l._error_type IS NULL) AS l",
        "WHERE l._error_type IS NULL AND l._ordinal > 0) AS l",
        10,
    ),
    Bug(
        "an answered batch is not recorded",
        "c",
        "doubt",
        "return head.proof()",
        "return False",
        150,
    ),
    Bug(
        "failures of rows that have left stay",
        "d",
        "settling",
        'f"DELETE FROM {plan.declaration.failures.sql} AS here WHERE {gone}", plan.scope',
        'f"DELETE FROM {plan.declaration.failures.sql} AS here WHERE {gone} AND false", plan.scope',
        120,
    ),
    Bug(
        "a launch is done with what it has joined",
        "g",
        "joining",
        "        behind = [part for part in self.slices if part.key in keys]\n",
        "        behind = [part for part in self.slices if part.key in keys and not joined]\n",
        60,
    ),
    Bug(
        "a failure does not leave when its row is answered",
        "d",
        "landing",
        "for table in (declaration.answers.sql, declaration.failures.sql):",
        "for table in (declaration.answers.sql,):",
        20,
    ),
    Bug(
        "earlier attempts are not added up",
        "e",
        "landing",
        "if chunk.attempt > 1 or chunk.is_copy:",
        "if chunk.attempt < 1:  # never",
        50,
    ),
    Bug(
        "a materialization never ends",
        "f",
        "ledger",
        "\"WHERE materialization_id = $materialization_id AND state = 'open' \"\n"
        '        "RETURNING materialization_id"',
        "\"WHERE materialization_id = $materialization_id AND state = 'closed' \"\n"
        '        "RETURNING materialization_id"',
        40,
    ),
    Bug(
        "a chunk whose batch never existed is waited for forever",
        "f",
        "doubt",
        "if proven else NotFound()",
        "if proven else Unsettled(now + UNSEEN)",
        40,
    ),
    Bug(
        "a run dies of another one's being faster",
        "g",
        "sending",
        "        except LostChunkError:\n            return None  # another run",
        "        except ZeroDivisionError:\n            return None  # another run",
        40,
    ),
    Bug(
        "what is out does not count against a cap",
        "h",
        "caps",
        "\"WHEN state IN ('sending', 'submitted') OR (state",
        '"WHEN false OR (state',
        60,
    ),
)


class StaleBugError(Exception):
    """The text that a bug replaces is not in the source any more."""

    def __init__(self, bug: Bug) -> None:
        super().__init__(f"{bug.name!r}: {bug.module}.py does not hold {bug.old!r} once; mend it")


def first_seed(bug: Bug) -> int | None:
    """The first seed whose schedule breaks the bug's invariant; None if no one does.

    Raises:
        StaleBugError: It cannot be put into the source as it is now.
    """
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        _put(bug, copy / f"{bug.module}.py")
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "simulation", "--seeds", f"0-{bug.seeds - 1}"),
                *("--until", bug.invariant),
            ],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([directory, str(_TESTS)])},
            capture_output=True,
            text=True,
            check=True,
        )
    found = ended.stdout.strip().splitlines()[-1]
    return None if found == "none" else int(found)


def _put(bug: Bug, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    if source.count(bug.old) != 1:
        raise StaleBugError(bug)
    path.write_text(source.replace(bug.old, bug.new), encoding="utf-8")


def main() -> int:
    missed = 0
    print("| bug | invariant | first seed |\n|---|---|---|")
    for bug in BUGS:
        seed = first_seed(bug)
        missed += seed is None
        found = f"not within {bug.seeds}" if seed is None else str(seed)
        meaning = f"({bug.invariant}) {INVARIANTS[bug.invariant]}"
        print(f"| {bug.name} | {meaning} | {found} |", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(min(1, main()))
