"""The files of one batch: its requests, and a result line for each of them.

Results stand in the order of the requests; ``offsets`` (where each line begins) and ``kinds``
(a letter for each) let them be read in the order in which they finish without loading them.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from array import array
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

from dagster_claude_batch.simulator.json_values import Params, compact
from dagster_claude_batch.simulator.rows import Kind, Row, custom_id_of, line_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from dagster_claude_batch.simulator.batch import Course

_CODES: dict[Kind, bytes] = {
    "succeeded": b"s",
    "missing": b"m",
    "unknown": b"u",
    "errored": b"e",
    "expired": b"x",
    "canceled": b"c",
}
_MISSING = ord("m")
_BILLED = frozenset(b"sm")


@dataclass(frozen=True, slots=True)
class BilledRequest:
    """A request that was paid for; ``usage`` is the API's, as in the result."""

    batch_id: str
    custom_id: str
    model: str
    usage: dict[str, Any]
    result_type: str
    stop_reason: str


class BatchFiles:
    """The folder of a batch, private to its owner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_requests(self) -> IO[str]:
        """Open the file of requests, one a line, to be written."""
        return open_private(self.folder / "requests.jsonl", "x")

    def requests(self) -> Iterator[tuple[str, Params]]:
        """Read the custom id and params of each request, in the order of submission."""
        with (self.folder / "requests.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                request = json.loads(line)
                yield request["custom_id"], request["params"]

    def write_results(self, rows: Iterable[Row]) -> bytes:
        """Write the rows, which come in the order of the requests, and return their kinds."""
        kinds, offsets = bytearray(), array("Q", [0])
        with open_private(self.folder / "results.jsonl", "xb") as lines:
            for row in rows:
                lines.write(row.line)
                kinds += _CODES[row.kind]
                offsets.append(offsets[-1] + len(row.line))
        with open_private(self.folder / "offsets", "xb") as file:
            offsets.tofile(file)
        with open_private(self.folder / "kinds", "xb") as file:
            file.write(kinds)
        return bytes(kinds)

    def kinds(self) -> bytes:
        """Read a letter for each request: how it counts if it is processed."""
        return (self.folder / "kinds").read_bytes()

    def results(self, course: Course, order: Iterable[int]) -> Iterator[bytes]:
        """Read the lines that the API gives out, in that order."""
        for kind, line, processed in self._lines(course, order):
            if not processed:
                yield line_of(custom_id_of(line), {"type": course.rest})
            elif kind != _MISSING:
                yield line

    def bill(self, course: Course, order: Iterable[int]) -> Iterator[BilledRequest]:
        """Read the requests that were paid for, in that order."""
        for kind, line, processed in self._lines(course, order):
            if processed and kind in _BILLED:
                yield _billed(course.id, json.loads(line))

    def write_bill(self, bill: Iterable[BilledRequest]) -> None:
        """Note what the requests cost, before they are forgotten."""
        with open_private(self.folder / "bill.jsonl", "w") as lines:
            lines.writelines(f"{compact(asdict(billed))}\n" for billed in bill)

    def keep_only_bill(self) -> None:
        """Forget requests and results."""
        for name in ("requests.jsonl", "results.jsonl", "offsets", "kinds"):
            (self.folder / name).unlink(missing_ok=True)

    def kept_bill(self) -> Iterator[BilledRequest]:
        """Read the bill of a batch whose results are forgotten."""
        with (self.folder / "bill.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield BilledRequest(**json.loads(line))

    def remove(self) -> None:
        """Remove the folder, if it is still there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _lines(self, course: Course, order: Iterable[int]) -> Iterator[tuple[int, bytes, bool]]:
        """Read kind, line, and whether it was processed, of each request in that order."""
        kinds, offsets = self.kinds(), array("Q")
        offsets.frombytes((self.folder / "offsets").read_bytes())
        with (
            (self.folder / "results.jsonl").open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            for rank, position in enumerate(order):
                line = data[offsets[position] : offsets[position + 1]]
                yield kinds[position], line, rank < course.processed


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open a file that nobody else may read."""
    encoding = None if "b" in mode else "utf-8"
    return open(path, mode, encoding=encoding, opener=_opener)


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _billed(batch_id: str, line: dict[str, Any]) -> BilledRequest:
    message = line["result"]["message"]
    return BilledRequest(
        batch_id=batch_id,
        custom_id=line["custom_id"],
        model=message["model"],
        usage=message["usage"],
        result_type=line["result"]["type"],
        stop_reason=message["stop_reason"],
    )
