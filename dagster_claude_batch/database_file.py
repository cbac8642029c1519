"""The head of a DuckDB file, which tells whether somebody has written it since.

DuckDB 2.0 reads a file's headers before it locks the file, and not again: what another process has
committed in between is unknown to it, and is overwritten by its own next checkpoint.
"""

import os
import threading
from pathlib import Path
from typing import Final

_HEADERS: Final = 3 * 4_096
"""Bytes at the beginning of a DuckDB file that each checkpoint changes."""

_MOST: Final = 100
"""Files that stay open; nobody works with so many databases at a time."""

_descriptors: dict[Path, tuple[int, int]] = {}
_opening: Final = threading.Lock()


def head_of(file: Path | None) -> bytes | None:
    """The headers of a database file as they are on the disk now; None if there is none.

    The file stays open as long as the process lives, unless it has many: closing any of a
    process's descriptors of a file lets go of all its locks on it, DuckDB's among them.
    """
    if file is None or not hasattr(os, "pread"):
        return None
    try:
        inode = file.stat().st_ino
        with _opening:
            known = _descriptors.get(file)
            if known is None or known[0] != inode:
                known = (inode, os.open(file, os.O_RDONLY))
                _descriptors[file] = known
                while len(_descriptors) > _MOST:
                    os.close(_descriptors.pop(next(iter(_descriptors)))[1])
        return os.pread(known[1], _HEADERS, 0)
    except OSError:
        return None
