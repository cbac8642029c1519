"""Pictures and documents: what they are, reading those that are named, making them small."""

import hashlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import duckdb

from dagster_claude_batch.one_line import one_line

READ: Final = duckdb.struct_type(
    {
        "url": "VARCHAR",
        "data": "BLOB",
        "size": "BIGINT",
        "sha256": "VARCHAR",
        "media_type": "VARCHAR",
        "problem": "VARCHAR",
    }
)
"""What is known of a picture or document: where Claude finds it; or its bytes, how many they are,
their hash and what they are; or what is wrong with it. The hash is of what was found, whatever
has become of it since."""

Read: TypeAlias = dict[str, Any]
"""A value of the type `READ`."""

MAX_FILE_BYTES: Final = 32_000_000
"""Nothing larger fits into a request, however it is written."""

_NINTH: Final = 8
_FIRST_BYTES: Final = 12


@dataclass(frozen=True)
class Format:
    """How a file begins, what stands from its ninth byte on, and its media type."""

    begins: bytes
    media_type: str
    ninth: bytes = b""


PICTURES: Final = (
    Format(b"\x89PNG\r\n\x1a\n", "image/png"),
    Format(b"\xff\xd8\xff", "image/jpeg"),
    Format(b"GIF8", "image/gif"),
    Format(b"RIFF", "image/webp", ninth=b"WEBP"),
)
PDFS: Final = (Format(b"%PDF-", "application/pdf"),)


def media_type_sql(data: str, formats: tuple[Format, ...]) -> str:
    """What SQL's BLOBs are by their first bytes; NULL for anything else."""
    cases = [
        f"WHEN {_stands_at(data, 0, each.begins)} AND {_stands_at(data, _NINTH, each.ninth)} "
        f"THEN '{each.media_type}'"
        for each in formats
    ]
    return f"CASE {' '.join(cases)} END"


def _stands_at(data: str, start: int, what: bytes) -> str:
    if not what:
        return "true"
    literal = "".join(f"\\x{byte:02X}" for byte in what)
    return f"{data}[{start + 1}:{start + len(what)}] = '{literal}'::BLOB"


def _media_type(first: bytes, formats: tuple[Format, ...]) -> str | None:
    for each in formats:
        if first.startswith(each.begins) and first[_NINTH:].startswith(each.ninth):
            return each.media_type
    return None


def reader(
    formats: tuple[Format, ...], what: str, *, shrink: "Shrink | None", keeps_data: bool
) -> Callable[[str | bytes | None], Read]:
    """A function that reads bytes, a path, or a URL, which Claude reads.

    ``what`` says what it reads. Without ``keeps_data`` only what is known of it is returned, and
    nothing is made small: its size then is what it has at the most.
    """

    def read(named: str | bytes | None) -> Read:
        found = _read(named, formats, what)
        data: bytes | None = found["data"]
        if data is None:
            return found
        if not keeps_data:
            size = len(data) if shrink is None else min(len(data), shrink.most_bytes)
            return {**found, "data": None, "size": size}
        if shrink is None:
            return found
        small = shrink(data)
        return {
            **found,
            "data": small,
            "size": len(small),
            "media_type": _media_type(small, formats),
        }

    return read


def _read(named: str | bytes | None, formats: tuple[Format, ...], what: str) -> Read:
    """Read a file that begins as it should: what a table names must not reveal any other."""
    if named is None:
        return _found()
    if isinstance(named, bytes):
        return _found(data=named, media_type=_media_type(named, formats))
    if named.startswith(("http://", "https://")):
        return _found(url=named)
    name = repr(one_line(named))
    try:
        with Path(named).open("rb") as file:
            first = file.read(_FIRST_BYTES)
            media_type = _media_type(first, formats)
            if media_type is None:
                return _found(problem=f"The file {name} is no {what}.")
            data = first + file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # the latter for a path that none can be
        why = (isinstance(error, OSError) and error.strerror) or "it is no path"
        return _found(problem=f"The file {name} cannot be read: {why}.")
    if len(data) > MAX_FILE_BYTES:
        return _found(problem=f"The file {name} is larger than any request.")
    return _found(data=data, media_type=media_type)


def _found(
    *,
    url: str | None = None,
    data: bytes | None = None,
    media_type: str | None = None,
    problem: str | None = None,
) -> Read:
    return {
        "url": url,
        "data": data,
        "size": None if data is None else len(data),
        "sha256": None if data is None else hashlib.sha256(data).hexdigest(),
        "media_type": media_type,
        "problem": problem,
    }


@dataclass(frozen=True)
class Shrink:
    """Makes pictures small: at most so many pixels of the longer edge, and so many bytes.

    One that is small enough stays as it is. What is no picture, or none that Pillow can work
    with, stays too, and is judged like all others.
    """

    max_edge: int
    most_bytes: int

    def __call__(self, data: bytes) -> bytes:
        """Return the picture's bytes, upright and of the same format if that is small enough."""
        from PIL import Image, ImageOps  # noqa: PLC0415  # an extra

        try:
            with Image.open(io.BytesIO(data)) as opened:
                is_small = max(opened.size) <= self.max_edge
                if is_small and len(data) <= self.most_bytes:
                    return data
                picture = ImageOps.exif_transpose(opened)
                picture.thumbnail((self.max_edge, self.max_edge))
                small = _saved(picture, opened.format)
                if len(small) > self.most_bytes:
                    small = _saved(picture.convert("RGB"), "JPEG")
        except Exception:  # noqa: BLE001  # Pillow's readers raise whatever they like
            return data
        return min(small, data, key=len)


def _saved(picture: Any, kind: str | None) -> bytes:  # noqa: ANN401  # Pillow is an extra
    written = io.BytesIO()
    picture.save(written, format=kind)
    return written.getvalue()


def require_pillow() -> None:
    """Make sure that pictures can be made small.

    Raises:
        ImportError: Pillow is not installed.
    """
    importlib.import_module("PIL")
