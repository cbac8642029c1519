"""How fast and how small: `python -m benchmarks.speed`, in ``tests/``.

Each variant in processes of its own, all of them in turn, round after round, on the same rows and
beside a server that is never the limit. Prints a table of medians; ``--out`` keeps all numbers,
``--chart`` draws them.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx2
from benchmarks.speed.data import make_source
from benchmarks.speed.peers.install import NAMES, interpreter
from benchmarks.speed.server import PREPARE

TIMEOUT: Final = 3_600
SIZES: Final = (10_000, 100_000, 1_000_000)
TESTS: Final = Path(__file__).parents[2]
OTHER: Final = {
    "validator": "a model with a validator",
    "function": "a prompt by a function",
    "large_chunks": "batches of 50,000",
    "pictures": "pictures",
}
"""Ours, in the ways that are slower."""

BASE: Final = "article"
"""What all others are compared with."""


@dataclass(frozen=True)
class Variant:
    """A program that does its parts one after the other, each as a process of its own."""

    name: str
    command: tuple[str, ...]
    parts: tuple[str, ...] = ("submit", "collect")


@dataclass(frozen=True)
class Taken:
    """What a part took; or why it cannot run."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_mb: float = 0.0
    said: str = ""
    cannot: str | None = None


def variants() -> list[Variant]:
    """All that can run here: ours, the article's way, the limits, and the peers installed."""
    here = (sys.executable, "-m")
    article = Variant(BASE, (*here, "benchmarks.speed.article"))
    parts = ("submit", "collect", "again", "changed")
    ours = Variant("ours", (*here, "benchmarks.speed.ours", "template"), parts)
    other = [
        Variant(f"ours, {name}", (*here, "benchmarks.speed.ours", how))
        for how, name in OTHER.items()
    ]
    parts = ("bytes", "post", "submit", "download", "collect")
    limits = Variant("limits", (*here, "benchmarks.speed.limits"), parts)
    peers = [
        Variant(name, (str(interpreter(name)), "-m", f"benchmarks.speed.peers.{name}"))
        for name in NAMES
        if interpreter(name).exists()
    ]
    return [article, ours, limits, *other, *peers]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Start the server; its address."""
    command = [sys.executable, "-m", "benchmarks.speed.server", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=TESTS, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.communicate()


def run(variant: Variant, rows: int, home: Path) -> Iterator[tuple[str, Taken]]:
    """Run the parts of a variant on a new table."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    make_source(str(home / "warehouse.duckdb"), rows)
    with serving(home / "server") as base_url:
        for part in variant.parts:
            if part in {"download", "collect"}:
                httpx2.post(base_url + PREPARE, timeout=TIMEOUT).raise_for_status()
            taken = run_part(variant, part, home, base_url)
            yield part, taken
            if taken.cannot is not None:
                return


def run_part(variant: Variant, part: str, home: Path, base_url: str) -> Taken:
    """Run one part, and read what it says at its end."""
    command = [*variant.command, part, str(home), base_url]
    env = {"PYTHONPATH": str(TESTS), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    try:
        ended = subprocess.run(
            command,
            cwd=TESTS,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Taken(cannot=f"more than {TIMEOUT} s")
    if ended.returncode:
        return Taken(cannot=(ended.stderr.strip().splitlines() or ["no reason"])[-1][:200])
    said = json.loads(ended.stdout.strip().splitlines()[-1])
    return Taken(**{name: said[name] for name in Taken.__dataclass_fields__ if name in said})


def in_turn(chosen: Sequence[Variant], rows: int, rounds: int) -> Iterator[dict[str, Any]]:
    """All variants, round after round."""
    with TemporaryDirectory() as home:
        for turn in range(rounds):
            for variant in chosen:
                for part, taken in run(variant, rows, Path(home) / "place"):
                    known = {"rows": rows, "round": turn, "variant": variant.name, "part": part}
                    yield {**known, **taken.__dict__}


# --- what is said ---------------------------------------------------------------------------

Found = Mapping[tuple[int, str, str], list[Taken]]


def gathered(lines: Sequence[Mapping[str, Any]]) -> Found:
    """All rounds of each size, variant and part."""
    found: defaultdict[tuple[int, str, str], list[Taken]] = defaultdict(list)
    for line in lines:
        taken = Taken(**{name: line[name] for name in Taken.__dataclass_fields__})
        found[line["rows"], line["variant"], line["part"]].append(taken)
    return found


def table(found: Found) -> Iterator[str]:
    """Medians, how often faster than the article's way, and the spread of that, in Markdown."""
    yield "| rows | variant | part | seconds | times as fast | spread | by CPU | memory, MB |"
    yield "|---|---|---|---|---|---|---|---|"
    for (rows, variant, part), all_taken in found.items():
        cannot = next((taken.cannot for taken in all_taken if taken.cannot), None)
        if cannot:
            yield f"| {rows:,} | {variant} | {part} | {cannot} | | | | |"
            continue
        seconds = [taken.seconds for taken in all_taken]
        base = found.get((rows, BASE, _HALVES.get(part, "none")))
        compared = " | | "
        if base:
            faster, spread, cpu = _against(all_taken, base)
            compared = f"{faster:.1f} | {spread} | {cpu:.1f}"
        memory = median(taken.memory_mb for taken in all_taken)
        yield (
            f"| {rows:,} | {variant} | {part} | {median(seconds):.2f} | {compared} "
            f"| {memory:,.0f} |"
        )


_HALVES: Final = {
    "bytes": "submit",
    "post": "submit",
    "submit": "submit",
    "download": "collect",
    "collect": "collect",
}
"""Which half of the article's way a part is compared with; the others have no like."""


def _against(taken: Sequence[Taken], base: Sequence[Taken]) -> tuple[float, str, float]:
    """Ratio of medians, its smallest and largest by round, and the ratio of the CPU."""
    by_round = [b.seconds / t.seconds for t, b in zip(taken, base, strict=False)]
    faster = median(b.seconds for b in base) / median(t.seconds for t in taken)
    cpu = median(b.cpu_seconds for b in base) / median(t.cpu_seconds for t in taken)
    return faster, f"{min(by_round):.1f} to {max(by_round):.1f}", cpu


def chart(found: Found, path: Path) -> None:
    """Draw how often each variant is faster than the article's way."""
    from matplotlib import pyplot as plt  # noqa: PLC0415  # only who wants a chart needs it

    sizes = sorted({rows for rows, _, _ in found})
    figure, axes = plt.subplots(len(sizes), 2, figsize=(9, 2.6 * len(sizes)), squeeze=False)
    for row, rows in enumerate(sizes):
        for column, part in enumerate(("submit", "collect")):
            base = found[rows, BASE, part]
            shown = {
                variant: _against(taken, base)[0]
                for (size, variant, of), taken in found.items()
                if (size, of) == (rows, part) and not any(t.cannot for t in taken)
            }
            axis = axes[row][column]
            colours = ["#d97757" if name == "ours" else "#8a8a8a" for name in shown]
            bars = axis.barh(list(shown), list(shown.values()), color=colours)
            axis.bar_label(bars, fmt="%.1f", padding=3)
            axis.set_title(f"{part}, {rows:,} rows: times as fast", fontsize=9, loc="left")
            axis.invert_yaxis()
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="variants (default: all that are installed)")
    parser.add_argument("--out", type=Path, help="a file of JSON Lines, which is added to")
    parser.add_argument("--read", action="store_true", help="measure nothing, read --out")
    parser.add_argument("--chart", type=Path, help="an SVG to be drawn")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []
    if arguments.out is not None and arguments.out.exists():
        lines = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    if not arguments.read:
        chosen = [v for v in variants() if arguments.only is None or v.name in arguments.only]
        for rows in arguments.rows:
            for line in in_turn(chosen, rows, arguments.rounds):
                lines.append(line)
                sys.stderr.write(f"{json.dumps(line)}\n")
                if arguments.out is not None:
                    with arguments.out.open("a") as file:
                        file.write(f"{json.dumps(line)}\n")
    found = gathered(lines)
    sys.stdout.write("\n".join(table(found)) + "\n")
    if arguments.chart is not None:
        chart(found, arguments.chart)


if __name__ == "__main__":
    main()
