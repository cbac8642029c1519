"""Airflow's common AI provider: ``LLMBatchOperator``, deferred, a mapped instance per 100,000 rows.

No Airflow server runs: ``execute`` defers once a batch is sent, ``LLMBatchTrigger`` says that it
has ended, and ``execute_complete`` lands a file of JSON lines, which DuckDB reads. The schema is
asked for as a tool that must be called, since the provider knows no other structured output.
"""

import asyncio
import json
import os
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
from benchmarks.speed.data import INSTRUCTION, MAX_TOKENS, MODEL, SOURCE, Review
from benchmarks.speed.peers import half

# Airflow reads its settings when it is imported; it would use the home folder and log to stdout.
os.environ |= {
    "AIRFLOW_HOME": str(Path(sys.argv[2]).resolve() / "airflow"),
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    "AIRFLOW_CONN_CLAUDE": json.dumps({"conn_type": "pydanticai", "password": "loopback"}),
}

from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator
from airflow.providers.common.ai.triggers.llm_batch import LLMBatchTrigger
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.lineage import get_hook_lineage_collector

get_hook_lineage_collector()  # loads all plug-ins, which a worker has done before

LIMIT = 100_000
"""Requests of a batch, which the operator leaves to its users."""


def operator(folder: Path, requests: list[str]) -> LLMBatchOperator:
    return LLMBatchOperator(
        task_id="reviews",
        requests=requests,
        result_path=landing(folder).as_uri(),
        llm_conn_id="claude",
        model_id=f"anthropic:{MODEL}",
        output_type=Review,
        max_tokens=MAX_TOKENS,
        deferrable=True,
    )


def instance(map_index: int) -> Any:
    """The context of a mapped instance, as far as the operator looks at it."""
    task = SimpleNamespace(
        dag_id="benchmark",
        task_id="reviews",
        run_id="manual",
        map_index=map_index,
        xcom_push=lambda **_: None,
    )
    return {"task_instance": task, "ti": task}


def submit(folder: Path) -> str:
    prompts = [f"{INSTRUCTION}\n\n{text}" for _, text in half.read(folder)]
    triggers: list[Any] = []
    for map_index, start in enumerate(range(0, len(prompts), LIMIT)):
        try:
            operator(folder, prompts[start : start + LIMIT]).execute(instance(map_index))
        except TaskDeferred as deferred:
            triggers.append(deferred.trigger.serialize()[1])
    state(folder).write_text(json.dumps(triggers))
    return f"{len(prompts)} rows"


def collect(folder: Path) -> str:
    files: list[str] = []
    for map_index, trigger in enumerate(json.loads(state(folder).read_text())):
        event = asyncio.run(ended(LLMBatchTrigger(**trigger)))
        manifest = operator(folder, []).execute_complete(instance(map_index), event)
        files.append(manifest["result_uri"].removeprefix("file://"))
    with closing(duckdb.connect(half.database(folder))) as connection:
        load(connection, files)
        return half.landed(connection)


async def ended(trigger: LLMBatchTrigger) -> dict[str, Any]:
    """What the trigger says of a batch when it looks for the first time."""
    return (await anext(trigger.run())).payload


def load(connection: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    """Read the files, whose lines have a row's place in its batch in place of its id."""
    connection.execute(
        "CREATE TEMP VIEW numbered AS "
        f"SELECT id, row_number() OVER (ORDER BY id) - 1 AS number FROM {SOURCE}"
    )
    connection.execute(
        """
        CREATE TEMP TABLE landed AS
        SELECT id, status, output, error.message AS error, usage
        FROM read_json(
            $files,
            filename = 'file',
            format = 'newline_delimited',
            columns = {
                "index": 'BIGINT',
                status: 'VARCHAR',
                output: 'STRUCT(label VARCHAR, score DOUBLE, topics VARCHAR[], summary VARCHAR)',
                error: 'STRUCT(message VARCHAR)',
                usage: 'STRUCT(input_tokens BIGINT, output_tokens BIGINT)'
            }
        )
        JOIN numbered ON number = "index" + $limit * (list_position($files, file) - 1)
        """,
        {"files": files, "limit": LIMIT},
    )
    connection.execute(
        "CREATE TABLE reviews AS "
        "SELECT id, unnest(output), unnest(usage) FROM landed WHERE status = 'success'"
    )
    connection.execute(
        "CREATE TABLE reviews_failures AS "
        "SELECT id, coalesce(error, status) AS error FROM landed WHERE status <> 'success'"
    )


def landing(folder: Path) -> Path:
    return folder.resolve() / "landing"


def state(folder: Path) -> Path:
    return folder / "state.json"


if __name__ == "__main__":
    half.run(submit, collect)
