"""What no variant can do without: DuckDB makes the bytes, the SDK carries them, DuckDB stores."""

import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import anthropic
import duckdb
import pyarrow as pa
from anthropic.types.messages import MessageBatch
from benchmarks.speed.data import INSTRUCTION, MAX_TOKENS, MODEL, SOURCE, Review
from benchmarks.speed.measure import measure

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 100_000


class Limits:
    """The same bytes and the same columns as the other variants, and nothing besides."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self.database = str(folder / "warehouse.duckdb")
        self.state = folder / "state.json"
        self.client = anthropic.Anthropic(api_key="loopback", base_url=base_url)

    # --- submit -----------------------------------------------------------------------------

    def make_bytes(self) -> list[IO[bytes]]:
        """Write the bodies of all batches to disk, as DuckDB makes them."""
        bodies: list[IO[bytes]] = []
        with closing(duckdb.connect(self.database, read_only=True)) as connection:
            connection.execute("SET produce_arrow_string_view = false")
            (rows,) = connection.execute(f"SELECT count(*) FROM {SOURCE}").fetchall()[0]
            for start in range(0, rows, CHUNK):
                body = tempfile.TemporaryFile()  # noqa: SIM115  # it is sent later
                body.write(b'{"requests":[')
                lines = connection.sql(LINES, params=_values(start)).to_arrow_reader(8_192)
                for number, batch in enumerate(lines):
                    _, _, data = batch.column(0).buffers()
                    offsets = memoryview(batch.column(0).buffers()[1]).cast("i")
                    text = memoryview(data)[: offsets[len(batch)]]
                    body.write(text[1:] if number == 0 else text)
                body.write(b"]}")
                bodies.append(body)
        return bodies

    def post(self, bodies: list[IO[bytes]]) -> str:
        """Send bodies that are ready."""
        ids: list[str] = []
        for body in bodies:
            size = body.tell()
            body.seek(0)
            created = self.client.post(
                "/v1/messages/batches",
                content=iter(lambda body=body: body.read(1 << 20), b""),
                cast_to=MessageBatch,
                options={
                    "headers": {"content-type": "application/json", "content-length": str(size)}
                },
            )
            ids.append(created.id)
        self.state.write_text(json.dumps(ids))
        return f"{len(ids)} batches"

    # --- collect ----------------------------------------------------------------------------

    def download(self) -> list[IO[bytes]]:
        """Write the results of all batches to disk."""
        files: list[IO[bytes]] = []
        for batch_id in json.loads(self.state.read_text()):
            file = tempfile.TemporaryFile()  # noqa: SIM115  # it is read later
            streaming = self.client.messages.batches.with_streaming_response
            with streaming.results(batch_id) as response:
                for piece in response.iter_bytes():
                    file.write(piece)
            files.append(file)
        return files

    def insert(self, ready: pa.Table) -> str:
        """Store columns that are ready."""
        with closing(duckdb.connect(self.database)) as connection:
            connection.register("ready", ready)
            connection.execute("CREATE TABLE reviews AS SELECT * FROM ready")
        return f"{len(ready)} rows"


LINES: Final = f"""
    SELECT ',{{"custom_id":"review-' || id || $before || to_json($instruction || text)::VARCHAR
        || '}}]}}}}'
    FROM {SOURCE} WHERE id >= $start AND id < $start + {CHUNK} ORDER BY id
"""
"""The requests of a batch, each behind its comma."""


def _values(start: int) -> dict[str, object]:
    """Parameters of the first such request."""
    schema = json.dumps(anthropic.transform_schema(Review))
    before = f'","params":{{"model":"{MODEL}","max_tokens":{MAX_TOKENS},"output_config":{{"format":'
    before += f'{{"type":"json_schema","schema":{schema}}}}},"messages":[{{"role":"user","content":'
    return {"before": before, "instruction": f"{INSTRUCTION}\n\n", "start": start}


def _ready(files: list[IO[bytes]]) -> pa.Table:
    """The columns of the answers; not measured."""
    rows: list[dict[str, Any]] = []
    for file in files:
        file.seek(0)
        for line in file:
            value = json.loads(line)
            if value["result"]["type"] == "succeeded":
                message = value["result"]["message"]
                answer = json.loads(message["content"][0]["text"])
                rows.append({"id": value["custom_id"], **answer, **_flat(message["usage"])})
    return pa.Table.from_pylist(rows)


def _flat(usage: dict[str, Any]) -> dict[str, int]:
    return {name: usage[name] for name in ("input_tokens", "output_tokens")}


def main(half: str, folder: str, base_url: str) -> None:
    """Measure one part: ``bytes``, ``post``, ``submit``, ``download`` or ``collect``."""
    limits = Limits(Path(folder), base_url)
    works: dict[str, Callable[[], object]] = {
        "bytes": lambda: f"{len(limits.make_bytes())} bodies",
        "submit": lambda: limits.post(limits.make_bytes()),
        "download": lambda: f"{len(limits.download())} files",
    }
    if half == "post":
        bodies = limits.make_bytes()
        measure(lambda: limits.post(bodies))
    elif half == "collect":
        ready = _ready(limits.download())
        measure(lambda: (limits.download(), limits.insert(ready))[1])
    else:
        measure(works[half])


if __name__ == "__main__":
    main(*sys.argv[1:])
