"""Run workers that have their imports behind them.

A code server starts each run as a new Python process, which imports Dagster, the SDK and Arrow for
two to three seconds of CPU: most of what these tests would cost. Here it is forked from a process
that has done so already; it is as much a process of its own, to look at and to kill. Set
``E2E_COLD_RUNS`` to start runs as a user's code server does.
"""

import os
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnProcess

IMPORTED = [
    "dagster._cli",
    "dagster._grpc.server",
    "dagster_claude_batch.simulator.transport",
    "dagster_duckdb_pandas",
]


def start_runs_warm() -> None:
    """Let this code server fork its runs; it leaves everything else as it is."""
    if "E2E_COLD_RUNS" not in os.environ:
        ForkServerContext().set_forkserver_preload(IMPORTED)
        SpawnProcess._Popen = staticmethod(ForkServerProcess._Popen)  # noqa: SLF001
