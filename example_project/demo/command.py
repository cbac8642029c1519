"""The command line of `python -m example_project`."""

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from dagster_claude_batch.simulator import Simulator
from example_project.demo.dagster_api import DagsterRefusedError
from example_project.demo.local_dagster import LocalDagster, LocalDagsterError
from example_project.demo.report import print_cost, print_spent, print_tables
from example_project.demo.story import Ending, RunFailedError, play
from example_project.settings import home, is_simulated, rows_per_corpus

SIMULATED_TIMEOUT = 600
CLAUDE_TIMEOUT = 26 * 3600
"""A batch ends within 24 hours."""


def main() -> None:
    """Run the demonstration; exits with 1 if something failed, 128 + signal if interrupted."""
    arguments = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    console = Console()
    _announce(console)
    if is_simulated() and not arguments.keep:
        shutil.rmtree(home(), ignore_errors=True)
    try:
        _demonstrate(console, timeout=arguments.timeout)
    except (DagsterRefusedError, LocalDagsterError, RunFailedError) as error:
        console.print("\n[bold red]This did not work.[/bold red]")
        for line in (error, f"Dagster's log: {_dagster_home() / 'dagster.log'}", f"See: {_ui()}"):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _demonstrate(console: Console, *, timeout: float) -> None:
    started = time.monotonic()
    target = ["-m", "example_project"]
    env = {"EXAMPLE_HOME": str(home().parent)}
    with LocalDagster(target, home=_dagster_home(), env=env) as dagster:
        console.print(f"Dagster is up. Watch it, if you like: [link]{dagster.url}[/link]")
        ending = play(dagster, console, timeout=timeout)
    _report(console, ending)
    console.print(f"[dim]That took {time.monotonic() - started:.0f} seconds.[/dim]")


def _announce(console: Console) -> None:
    rows = rows_per_corpus()
    amount = "all snippets" if rows is None else f"the first {rows} snippets of each corpus"
    if is_simulated():
        who = "a simulator on this machine (set ANTHROPIC_API_KEY to ask Claude)"
    else:
        who = "Claude, for money (EXAMPLE_ROWS sets how many)"
    console.print(f"Asking {who} about {amount}.")
    console.print(f"Everything is kept in {home()}. Starting Dagster …")


def _report(console: Console, ending: Ending) -> None:
    warehouse = home() / "warehouse.duckdb"
    print_tables(console, warehouse)
    if ending.check is not None:
        verdict = "passed" if ending.check.status == "SUCCEEDED" else "did not pass"
        console.print(f"The asset check agrees_with_people {verdict}.")
    simulator = Simulator(home() / "simulator") if is_simulated() else None
    print_spent(console, warehouse, simulator)
    print_cost(console, ending.cost, simulated=is_simulated())
    console.print(f"\nThe tables: [bold]{warehouse}[/bold]\nLook around: {_ui()}", soft_wrap=True)
    console.print("Go on from here instead of starting afresh: python -m example_project --keep")


def _ui() -> str:
    """Return the command that opens the UI on what the demonstration has left."""
    variables = {"DAGSTER_HOME": _dagster_home(), "EXAMPLE_HOME": home().parent}
    assignments = (f"{name}={shlex.quote(str(value))}" for name, value in variables.items())
    return f"{' '.join(assignments)} dagster dev -m example_project"


def _dagster_home() -> Path:
    return home() / "dagster"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_project", description=__doc__)
    parser.add_argument(
        "--keep",
        action="store_true",
        help="go on with the tables of the last time; with an API key, always",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=SIMULATED_TIMEOUT if is_simulated() else CLAUDE_TIMEOUT,
        help="seconds to wait for the batches (default: %(default)s)",
    )
    return parser.parse_args()


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End once, and let nothing interrupt the ending of Dagster."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    farewell = f"\nStopping Dagster; {os.path.relpath(home())} is kept: go on with --keep.\n"
    sys.stderr.write(farewell)  # not through rich, whose locks the interrupted code may hold
    sys.exit(128 + number)
