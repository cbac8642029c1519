"""Ours, as users run it: ledger, hashes, validation, failures, cost, and the report at the end.

There are several of it: by the prompt, the check of the answers, and the size of batches.
"""

import logging
import sys
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import duckdb
from benchmarks.speed.data import INSTRUCTION, MAX_TOKENS, SOURCE, Review
from benchmarks.speed.measure import measure
from dagster_duckdb import DuckDBResource
from pydantic import field_validator

from dagster_claude_batch import ClaudeBatchResource, Image, build_claude_batch_asset
from dagster_claude_batch.batch_asset import batch_asset, engine_for
from dagster_claude_batch.ledger import Materialization, MaterializationConfig
from dagster_claude_batch.report import report_on
from dagster_claude_batch.workbench import asset_of


class Checked(Review):
    """The same, for which each answer has to go through Pydantic."""

    @field_validator("summary")
    @classmethod
    def has_a_summary(cls, summary: str) -> str:
        """Refuse an empty one."""
        if not summary:
            raise ValueError("it is empty")
        return summary


def ask(row: dict[str, Any]) -> str:
    """Write the prompt of a row."""
    return f"{INSTRUCTION}\n\n{row['text']}"


HOW: Final[dict[str, dict[str, Any]]] = {
    "template": {"prompt": f"{INSTRUCTION}\n\n{{{{ text }}}}"},
    "validator": {"prompt": f"{INSTRUCTION}\n\n{{{{ text }}}}", "output": Checked},
    "function": {"prompt": ask},
    "large_chunks": {"prompt": f"{INSTRUCTION}\n\n{{{{ text }}}}", "chunk_size": 50_000},
    "pictures": {"prompt": [Image("picture"), INSTRUCTION]},
}


class Ours:
    """A run's engine on a warehouse."""

    def __init__(self, folder: Path, base_url: str, how: str = "template") -> None:
        self.database = str(folder / "warehouse.duckdb")
        declared: dict[str, Any] = {"output": Review, "max_tokens": MAX_TOKENS, **HOW[how]}
        found = batch_asset(
            build_claude_batch_asset("reviews", source=SOURCE, row_key="id", **declared)
        )
        assert found is not None
        self.engine = engine_for(
            found,
            database=DuckDBResource(database=self.database),
            claude=ClaudeBatchResource(
                api_key="loopback", base_url=base_url, max_in_flight_requests=100_000_000
            ),
            run_id=str(uuid4()),
            log=logging.getLogger("benchmark"),
        )
        self.held_seconds = 0.0
        opening = self.engine.warehouse.open_connection
        self.engine.warehouse = replace(
            self.engine.warehouse, open_connection=lambda: self._noting(opening())
        )

    @contextmanager
    def _noting(
        self, opened: AbstractContextManager[duckdb.DuckDBPyConnection]
    ) -> Generator[duckdb.DuckDBPyConnection]:
        """Note how long the database is open at most."""
        began = time.perf_counter()
        with opened as connection:
            yield connection
        self.held_seconds = max(self.held_seconds, time.perf_counter() - began)

    def _attach(self) -> list[Materialization]:
        return self.engine.attach([None], MaterializationConfig())

    def submit(self) -> str:
        """Send all that is due."""
        waiting = self.engine.advance(self._attach())
        assert waiting is not None
        return self._said(f"{len(waiting.batch_ids)} batches")

    def _said(self, what: str) -> str:
        return f"{what}; database open for {self.held_seconds:.2f} s at most"

    def collect(self) -> str:
        """Land all, and report, as a run does before it materializes its partitions."""
        materializations = self._attach()
        waiting = self.engine.advance(materializations)
        assert waiting is None
        declaration = self.engine.declaration
        report = self.engine.warehouse.transact(
            lambda connection: report_on(
                connection,
                declaration,
                asset_of(connection, declaration.asset),
                materializations,
                None,
            )
        )
        return self._said(f"{report.answered} answers, {report.failed} failures")


def change_one_in_a_hundred(folder: Path) -> None:
    """Change one row in a hundred of the source."""
    with closing(duckdb.connect(str(folder / "warehouse.duckdb"))) as connection:
        connection.execute(f"UPDATE {SOURCE} SET text = text || '!' WHERE id % 100 = 0")


def main(how: str, part: str, folder: str, base_url: str) -> None:
    """Measure ``submit``, ``collect``, then ``again`` (nothing has changed), or ``changed``."""
    if part == "changed":
        change_one_in_a_hundred(Path(folder))
    ours = Ours(Path(folder), base_url, how)
    measure(
        {
            "submit": ours.submit,
            "collect": ours.collect,
            "again": ours.collect,
            "changed": ours.submit,
        }[part]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
