"""Pictures and documents that a column only names, and pictures that are too large."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import duckdb

from dagster_claude_batch.one_line import one_line

READ: Final = duckdb.struct_type(
    {"url": "VARCHAR", "data": "BLOB", "sha256": "VARCHAR", "problem": "VARCHAR"}
)
"""What is known of a picture or document: where Claude finds it, the bytes to be sent and the hash
of those that it had before, or what is wrong with it."""

Read: TypeAlias = dict[str, Any]
"""A value of the type `READ`."""

MAX_FILE_BYTES: Final = 32_000_000
"""Nothing larger fits into a request, however it is written."""

_PDF: Final = (b"%PDF-",)
_PICTURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF")
_FIRST_BYTES: Final = 8


def image_reader(max_edge: int | None) -> Callable[[str | bytes | None], Read]:
    """A function that reads a picture: of bytes, a path, or a URL, which Claude reads.

    With ``max_edge``, one whose longer edge has more pixels is scaled down to them.

    Raises:
        ImportError: Pillow is not installed, and is needed.
    """
    shrink = _shrink_to(max_edge) if max_edge is not None else None

    def read(named: str | bytes | None) -> Read:
        found = _read(named, _PICTURES, "no PNG, JPEG, GIF or WebP picture")
        if shrink is not None and found["data"] is not None:
            found["data"] = shrink(found["data"])
        return found

    return read


def read_pdf(named: str | bytes | None) -> Read:
    """Read a PDF: by its path, or its URL, which Claude reads."""
    return _read(named, _PDF, "no PDF")


def _read(named: str | bytes | None, beginnings: tuple[bytes, ...], otherwise: str) -> Read:
    """Read a file that begins as it should: what a table names must not reveal any other."""
    if named is None:
        return _found()
    if isinstance(named, bytes):
        return _found(data=named)
    if named.startswith(("http://", "https://")):
        return _found(url=named)
    try:
        with Path(named).open("rb") as file:
            first = file.read(_FIRST_BYTES)
            if not first.startswith(beginnings):
                return _found(problem=f"The file {one_line(named)!r} holds {otherwise}.")
            data = first + file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # the latter for a path that none can be
        why = (isinstance(error, OSError) and error.strerror) or "it is no path"
        return _found(problem=f"The file {one_line(named)!r} cannot be read: {why}.")
    if len(data) > MAX_FILE_BYTES:
        return _found(problem=f"The file {one_line(named)!r} is larger than any request.")
    return _found(data=data)


def _found(
    *, url: str | None = None, data: bytes | None = None, problem: str | None = None
) -> Read:
    sha256 = hashlib.sha256(data).hexdigest() if data is not None else None
    return {"url": url, "data": data, "sha256": sha256, "problem": problem}


def _shrink_to(max_edge: int) -> Callable[[bytes], bytes]:
    from PIL import Image  # noqa: PLC0415  # an extra

    def shrink(data: bytes) -> bytes:
        try:
            with Image.open(io.BytesIO(data)) as picture:
                if max(picture.size) <= max_edge:
                    return data
                kind = picture.format
                picture.thumbnail((max_edge, max_edge))
                written = io.BytesIO()
                picture.save(written, format=kind)
        except (OSError, ValueError, Image.DecompressionBombError):
            return data  # no picture, or none that Pillow can work with: judged like all others
        return written.getvalue()

    return shrink
