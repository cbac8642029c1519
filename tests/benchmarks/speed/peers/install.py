"""Install the peers, each in a virtual environment of its own.

``python -m benchmarks.speed.peers.install [NAME …]``, in the folder ``tests``; without names, all.
They come below the folder that ``BENCHMARK_PEERS`` names, or ``.peers`` beside the benchmarks.
What is there already stays, so it can be run again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from venv import EnvBuilder

HERE = Path(__file__).parent
NAMES = sorted(each.stem for each in HERE.glob("*.txt"))


def environment(name: str) -> Path:
    """The folder of a peer's virtual environment."""
    return Path(os.environ.get("BENCHMARK_PEERS", HERE.parents[1] / ".peers")) / name


def interpreter(name: str) -> Path:
    """The Python that runs a peer's script."""
    return environment(name) / "bin" / "python"


def install(name: str) -> str | None:
    """Install what a peer needs; if that does not go well, say why."""
    if not interpreter(name).exists():
        EnvBuilder(with_pip=True, symlinks=True).create(environment(name))
    pip = [interpreter(name), "-m", "pip", "install", "--quiet"]
    done = subprocess.run(
        [*pip, "--requirement", HERE / f"{name}.txt"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    return ["no reason", *done.stderr.splitlines()][-1]


def main(*names: str) -> None:
    """Install these peers; those that cannot be are shown as that, with the reason, as JSON."""
    if unknown := set(names) - set(NAMES):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    failed = 0
    for name in names or NAMES:
        if reason := install(name):
            failed += 1
            sys.stdout.write(json.dumps({"peer": name, "cannot": reason}) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
