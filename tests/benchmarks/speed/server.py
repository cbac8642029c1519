"""A server that is never the limit: it swallows bodies and streams prepared results.

It runs in a process of its own, on loopback. Between the two halves of a measurement it is told
to prepare the results of all that it has swallowed, which is not measured.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import IO, Any, Final

from benchmarks.speed.data import ANSWERS, FAILED_EVERY, MODEL

PIECE: Final = 1 << 20
PREPARE: Final = "/prepare"
_CUSTOM_ID: Final = re.compile(rb'"custom_id": ?"([^"]+)"')
_TOOL: Final = re.compile(rb'"tool_choice": ?\{"type": ?"tool", ?"name": ?"([^"]+)"')


@dataclass
class Batch:
    """What was posted; the results are prepared later."""

    batch_id: str
    folder: Path
    created_at: datetime
    counts: dict[str, int] | None = None

    @property
    def body(self) -> Path:
        """The request's body, as it came."""
        return self.folder / f"{self.batch_id}.body"

    @property
    def results(self) -> Path:
        """The lines that are streamed."""
        return self.folder / f"{self.batch_id}.jsonl"

    def prepare(self) -> None:
        """Write the results: a line for each custom id, in an order of their own."""
        body = self.body.read_bytes()
        custom_ids = _CUSTOM_ID.findall(body)
        tool = _TOOL.search(body)
        succeeded = _SUCCEEDED if tool is None else _called(tool[1].decode())
        Random(7).shuffle(custom_ids)
        failed = 0
        with self.results.open("wb") as file:
            for number, custom_id in enumerate(custom_ids):
                is_failed = number % FAILED_EVERY == FAILED_EVERY - 1
                failed += is_failed
                file.write(b'{"custom_id":"' + custom_id + b'","result":')
                file.write(_ERRORED if is_failed else succeeded[number % len(succeeded)])
        self.counts = {"succeeded": len(custom_ids) - failed, "errored": failed}
        self.body.unlink()

    def as_json(self, base_url: str) -> dict[str, Any]:
        """The batch as the API shows it."""
        ended = self.counts is not None
        counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        return {
            "id": self.batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts | (self.counts or {}),
            "created_at": self.created_at.isoformat(),
            "expires_at": (self.created_at + timedelta(days=1)).isoformat(),
            "ended_at": datetime.now(UTC).isoformat() if ended else None,
            "cancel_initiated_at": None,
            "archived_at": None,
            "results_url": f"{base_url}/v1/messages/batches/{self.batch_id}/results"
            if ended
            else None,
        }


def _succeeded(number: int, block: dict[str, Any], stop_reason: str) -> bytes:
    message = {
        "model": MODEL,
        "id": f"msg_{number:024d}",
        "type": "message",
        "role": "assistant",
        "content": [block],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "stop_details": None,
        "usage": {
            "input_tokens": 300 + number % 50,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 250 + number % 50,
            "output_tokens_details": {"thinking_tokens": 0},
            "service_tier": "batch",
        },
    }
    return _compact({"type": "succeeded", "message": message})


def _compact(result: dict[str, Any]) -> bytes:
    return json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode() + b"}\n"


_SUCCEEDED: Final = [
    _succeeded(number, {"type": "text", "text": text}, "end_turn")
    for number, text in enumerate(ANSWERS)
]
_ERRORED: Final = _compact(
    {
        "type": "errored",
        "error": {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "messages: not this one"},
            "request_id": None,
        },
    }
)


def _called(tool: str) -> list[bytes]:
    """The same answers, for those who ask for them as the call of a tool."""
    blocks: list[dict[str, Any]] = [
        {
            "type": "tool_use",
            "id": f"toolu_{number:024d}",
            "name": tool,
            "input": json.loads(text),
            "caller": {"type": "direct"},
        }
        for number, text in enumerate(ANSWERS)
    ]
    return [_succeeded(number, block, "tool_use") for number, block in enumerate(blocks)]


class SwallowingServer(ThreadingHTTPServer):
    """Keeps what is posted in ``folder``; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.folder = folder
        self.batches: dict[str, Batch] = {}
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = PIECE
    server: SwallowingServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        """Log nothing."""

    def do_POST(self) -> None:
        if self.path == PREPARE:
            self._swallow(None)
            for batch in self.server.batches.values():
                if batch.counts is None:
                    batch.prepare()
            self._say({"prepared": len(self.server.batches)})
        elif self.path.startswith("/v1/messages/batches"):
            self._create()
        else:
            self._swallow(None)
            self._say({"input_tokens": 300})

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        match path.removeprefix("/v1/").split("/"):
            case ["models", model]:
                self._say(_model(model))
            case ["messages", "batches"]:
                found = list(self.server.batches.values())[::-1]
                data = [batch.as_json(self.server.base_url) for batch in found]
                first, last = (found[0].batch_id, found[-1].batch_id) if found else (None, None)
                self._say({"data": data, "has_more": False, "first_id": first, "last_id": last})
            case ["messages", "batches", batch_id]:
                self._say(self.server.batches[batch_id].as_json(self.server.base_url))
            case ["messages", "batches", batch_id, "results"]:
                self._stream(self.server.batches[batch_id].results)
            case _:
                self.send_error(404)

    def _create(self) -> None:
        number = len(self.server.batches) + 1
        batch = Batch(f"msgbatch_{number:06d}", self.server.folder, datetime.now(UTC))
        with batch.body.open("wb") as file:
            self._swallow(file)
        self.server.batches[batch.batch_id] = batch
        self._say(batch.as_json(self.server.base_url))

    def _swallow(self, file: IO[bytes] | None) -> None:
        for piece in self._pieces():
            if file is not None:
                file.write(piece)

    def _pieces(self) -> Iterator[bytes]:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            left = int(self.headers.get("content-length", "0"))
            while left and (piece := self.rfile.read1(min(left, PIECE))):
                left -= len(piece)
                yield piece
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _say(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, results: Path) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/x-jsonl")
        self.send_header("content-length", str(results.stat().st_size))
        self.end_headers()
        self.wfile.flush()
        with results.open("rb") as file:
            self.connection.sendfile(file)


def _model(model: str) -> dict[str, Any]:
    return {
        "id": model,
        "type": "model",
        "display_name": model,
        "created_at": "2026-01-01T00:00:00Z",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
        "capabilities": None,
    }


def main(folder: str) -> None:
    """Serve until standard input ends; the first line of the output is the address."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with SwallowingServer(path) as server:
        sys.stdout.write(f"{server.base_url}\n")
        sys.stdout.flush()
        Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
        server.shutdown()
    shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
