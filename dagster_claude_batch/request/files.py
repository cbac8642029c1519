"""Pictures and documents that a column only names, and pictures that are too large."""

import hashlib
import io
from collections.abc import Callable
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

NO_PICTURE: Final = "no PNG, JPEG, GIF or WebP picture"
NO_PDF: Final = "no PDF"

_Kinds: TypeAlias = tuple[tuple[bytes, bytes, str], ...]
"""How a file begins, what stands at its ninth byte, and its media type."""

_PICTURES: Final[_Kinds] = (
    (b"\x89PNG\r\n\x1a\n", b"", "image/png"),
    (b"\xff\xd8\xff", b"", "image/jpeg"),
    (b"GIF8", b"", "image/gif"),
    (b"RIFF", b"WEBP", "image/webp"),
)
_PDF: Final[_Kinds] = ((b"%PDF-", b"", "application/pdf"),)
_NINTH: Final = 8
_FIRST_BYTES: Final = 12


def image_reader(max_edge: int | None) -> Callable[[str | bytes | None], Read]:
    """A function that reads a picture: of bytes, a path, or a URL, which Claude reads.

    With ``max_edge``, one whose longer edge has more pixels is scaled down to them, if it takes
    fewer bytes then.

    Raises:
        ImportError: Pillow is not installed, and is needed.
    """
    shrink = _shrink_to(max_edge) if max_edge is not None else None

    def read(named: str | bytes | None) -> Read:
        found = _read(named, _PICTURES, NO_PICTURE)
        if shrink is not None and found["data"] is not None:
            data = shrink(found["data"])
            found |= {"data": data, "size": len(data)}
        return found

    return read


def read_pdf(named: str | bytes | None) -> Read:
    """Read a PDF: by its path, or its URL, which Claude reads."""
    return _read(named, _PDF, NO_PDF)


def without_data(
    read: Callable[[str | bytes | None], Read],
) -> Callable[[str | bytes | None], Read]:
    """The same function, of which nobody keeps the bytes."""

    def judge(named: str | bytes | None) -> Read:
        return {**read(named), "data": None}

    return judge


def _read(named: str | bytes | None, kinds: _Kinds, otherwise: str) -> Read:
    """Read a file that begins as it should: what a table names must not reveal any other."""
    if named is None:
        return _found()
    if isinstance(named, bytes):
        return _found(data=named, media_type=_media_type(named, kinds))
    if named.startswith(("http://", "https://")):
        return _found(url=named)
    name = repr(one_line(named))
    try:
        with Path(named).open("rb") as file:
            first = file.read(_FIRST_BYTES)
            media_type = _media_type(first, kinds)
            if media_type is None:
                return _found(problem=f"The file {name} holds {otherwise}.")
            data = first + file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:  # the latter for a path that none can be
        why = (isinstance(error, OSError) and error.strerror) or "it is no path"
        return _found(problem=f"The file {name} cannot be read: {why}.")
    if len(data) > MAX_FILE_BYTES:
        return _found(problem=f"The file {name} is larger than any request.")
    return _found(data=data, media_type=media_type)


def _media_type(first: bytes, kinds: _Kinds) -> str | None:
    for begins, ninth, media_type in kinds:
        if first.startswith(begins) and first[_NINTH:].startswith(ninth):
            return media_type
    return None


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
        return min(written.getvalue(), data, key=len)

    return shrink
