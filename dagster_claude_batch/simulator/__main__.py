"""``python -m dagster_claude_batch.simulator``: the Message Batches API on this machine.

Point a client at the URL that it prints, with any key::

    ANTHROPIC_BASE_URL=http://127.0.0.1:8642 ANTHROPIC_API_KEY=simulated dg dev
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

from dagster_claude_batch.simulator.errors import FunctionNotFoundError
from dagster_claude_batch.simulator.server import SimulatorServer
from dagster_claude_batch.simulator.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted or terminated, which is the normal end."""
    options = _parser().parse_args(arguments)
    simulator = Simulator(
        options.path,
        answer=options.answer,
        outcome=options.outcome,
        processing_seconds=tuple(options.processing_seconds),
        max_queued_requests=options.max_queued_requests,
        seed=options.seed,
    )
    try:
        _ = simulator.answer, simulator.outcome
    except FunctionNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    _serve(simulator, options.port)
    return 0


def _serve(simulator: Simulator, port: int) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with SimulatorServer(simulator, port=port) as server:
            print(server.base_url, flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dagster_claude_batch.simulator",
        description="A local simulation of Anthropic's Message Batches API, on loopback only.",
    )
    parser.add_argument("--path", required=True, help="the directory that holds all state")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--answer", metavar="MODULE:FUNCTION", help="answers a request")
    parser.add_argument("--outcome", metavar="MODULE:FUNCTION", help="makes rows fail")
    parser.add_argument(
        "--processing-seconds",
        type=float,
        nargs=2,
        default=(2.0, 6.0),
        metavar=("LEAST", "MOST"),
        help="how long a batch takes (default: 2 6)",
    )
    parser.add_argument("--max-queued-requests", type=int, default=200_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
