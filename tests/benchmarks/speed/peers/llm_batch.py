"""llm-batch-py: ``Runner.run`` on a Polars frame, once to submit and once more to collect.

It asks for the schema as a tool that must be called, since it knows no other structured output.
Of its own columns only those that are written are asked for.
"""

from contextlib import closing
from pathlib import Path

import duckdb
import polars as pl
from benchmarks.speed.data import INSTRUCTION, MAX_TOKENS, MODEL, SOURCE, Review
from benchmarks.speed.peers import half
from llm_batch_py import (
    AnthropicConfig,
    ResultCacheStoreConfig,
    Runner,
    StructuredOutputJob,
    structured_template,
)

STATUS = "llm_batch_py_status"
TOKENS = ["input_tokens", "output_tokens"]


def job(folder: Path) -> StructuredOutputJob[Review]:
    with closing(duckdb.connect(half.database(folder), read_only=True)) as connection:
        rows = connection.sql(f"SELECT id, text FROM {SOURCE} ORDER BY id").pl()
    return StructuredOutputJob(
        name="reviews",
        key_cols=["id"],
        input_df=rows,
        prompt_builder=structured_template(messages=f"{INSTRUCTION}\n\n{{{{ row.text }}}}"),
        output_model=Review,
        provider=AnthropicConfig(model=MODEL, max_output_tokens=MAX_TOKENS),
        result_cache=ResultCacheStoreConfig(root_uri=str(folder / "llm_batch_py")),
    )


def submit(folder: Path) -> str:
    runner = Runner()
    runner.run(job(folder), metadata_columns=[STATUS])
    summary = runner.last_summary
    assert summary is not None
    if summary.submitted_rows < summary.total_rows:
        raise RuntimeError(f"{summary.submitted_rows} of {summary.total_rows} rows were sent")
    return f"{summary.submitted_rows} rows"


def collect(folder: Path) -> str:
    tokens = {f"llm_batch_py_{name}": name for name in TOKENS}
    error = "llm_batch_py_error_code"
    found = Runner().run(job(folder), metadata_columns=[STATUS, *tokens, error])
    answered = pl.col(STATUS) == "cached"
    answers = found.filter(answered).select("id", *Review.model_fields, *tokens).rename(tokens)
    failures = found.filter(~answered).select("id", error=error)
    return half.land(folder, answers, failures)


if __name__ == "__main__":
    half.run(submit, collect)
