"""The article's way: what one would write from the documentation of the SDK."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import anthropic
import duckdb
import pandas as pd
from benchmarks.speed.data import INSTRUCTION, MAX_TOKENS, MODEL, SOURCE, Review
from benchmarks.speed.measure import measure

LIMIT = 100_000
"""Requests of a batch."""


def submit(database: str, base_url: str, state: Path) -> str:
    client = anthropic.Anthropic(api_key="loopback", base_url=base_url)
    schema = anthropic.transform_schema(Review)
    with closing(duckdb.connect(database, read_only=True)) as connection:
        rows = connection.execute(f"SELECT id, text FROM {SOURCE} ORDER BY id").fetchall()
    batch_ids: list[str] = []
    for start in range(0, len(rows), LIMIT):
        requests: Any = [
            {
                "custom_id": f"review-{row_id}",
                "params": {
                    "model": MODEL,
                    "max_tokens": MAX_TOKENS,
                    "messages": [{"role": "user", "content": f"{INSTRUCTION}\n\n{text}"}],
                    "output_config": {"format": {"type": "json_schema", "schema": schema}},
                },
            }
            for row_id, text in rows[start : start + LIMIT]
        ]
        batch_ids.append(client.messages.batches.create(requests=requests).id)
    state.write_text(json.dumps(batch_ids))
    return f"{len(rows)} rows"


def collect(database: str, base_url: str, state: Path) -> str:
    client = anthropic.Anthropic(api_key="loopback", base_url=base_url)
    answers: list[tuple[Any, ...]] = []
    failures: list[tuple[Any, ...]] = []
    for batch_id in json.loads(state.read_text()):
        for each in client.messages.batches.results(batch_id):
            row_id = int(each.custom_id.removeprefix("review-"))
            if each.result.type != "succeeded":
                failures.append((row_id, each.result.type))
                continue
            message = each.result.message
            (block,) = message.content
            assert block.type == "text"
            answer = json.loads(block.text)
            answers.append(
                (
                    row_id,
                    answer["label"],
                    answer["score"],
                    answer["topics"],
                    answer["summary"],
                    message.usage.input_tokens,
                    message.usage.output_tokens,
                )
            )
    names = ["id", "label", "score", "topics", "summary", "input_tokens", "output_tokens"]
    found = pd.DataFrame(answers, columns=names)
    failed = pd.DataFrame(failures, columns=["id", "error"])
    with closing(duckdb.connect(database)) as connection:
        connection.register("found", found)
        connection.register("failed", failed)
        connection.execute("CREATE TABLE reviews AS SELECT * FROM found")
        connection.execute("CREATE TABLE reviews_failures AS SELECT * FROM failed")
    return f"{len(answers)} answers, {len(failures)} failures"


def main(half: str, folder: str, base_url: str) -> None:
    """Measure one half: ``submit`` or ``collect``."""
    work = {"submit": submit, "collect": collect}[half]
    place = Path(folder)
    measure(lambda: work(str(place / "warehouse.duckdb"), base_url, place / "state.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
