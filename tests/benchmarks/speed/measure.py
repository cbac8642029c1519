"""One half of a variant, measured in a process of its own: seconds, CPU, memory."""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

MB = 1_000_000


def measure(work: Callable[[], object]) -> None:
    """Do the work, and print what it took as JSON.

    ``memory_mb`` is the peak above what the process had before, with everything imported.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    idle = _memory("VmRSS")
    began, computed = time.perf_counter(), _computed()
    said = work()
    taken = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": _computed() - computed,
        "memory_mb": (_memory("VmHWM") - idle) / MB,
        "idle_mb": idle / MB,
    }
    sys.stdout.write(json.dumps(taken | {"said": said}) + "\n")


def _computed() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _memory(name: str) -> int:
    """Bytes that the process has in memory, or had at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1_024
