"""The ``source`` of a picture or a document: a leaf for each kind."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from dagster_claude_batch.request import files
from dagster_claude_batch.request.leaf import Leaf, Scope

MediaType: TypeAlias = Literal["application/pdf", "text/plain"]

MAX_IMAGE_BASE64: Final = 5 * 1024 * 1024
"""Bytes of one picture as base64; the API refuses larger ones."""

_AROUND: Final = 60
"""Bytes of a source besides its data, at the most."""


@dataclass(frozen=True)
class _FileSource:
    """Bytes as base64, or a URL. Its value is a `files.READ`.

    ``first_bytes`` tell what it is, and are SQL; ``no_such`` says that it is nothing of the kind.
    """

    column: str
    structure: object
    read: Callable[[str | bytes | None], files.Read]
    first_bytes: Callable[[str], str]
    no_such: str
    most_base64: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def value(self, scope: Scope) -> str:
        alias, is_blob = scope.aliases[self.column], scope.types[self.column] == "BLOB"
        if is_blob and not self._changes_bytes(scope):
            return (
                f"struct_pack(url := CAST(NULL AS VARCHAR), data := {alias}, "
                f"size := octet_length({alias}), sha256 := sha256({alias}), "
                f"media_type := {self.first_bytes(alias)}, problem := CAST(NULL AS VARCHAR))"
            )
        kind = "BLOB" if is_blob else "VARCHAR"
        read = self.read if scope.writes else files.without_data(self.read)
        return scope.call(read, f"CAST({alias} AS {kind})", takes=kind, returns=files.READ)

    def _changes_bytes(self, scope: Scope) -> bool:
        del scope
        return False

    def json(self, value: str, scope: Scope) -> str:
        del scope
        url = f'\'{{"type":"url","url":\' || to_json({value}.url) || \'}}\''
        data = (
            f'\'{{"type":"base64","media_type":"\' || {value}.media_type || '
            f'\'","data":"\' || to_base64({value}.data) || \'"}}\''
        )
        return f"CASE WHEN {value}.url IS NOT NULL THEN {url} ELSE {data} END"

    def size(self, value: str, scope: Scope) -> str:
        del scope
        url = f"strlen(to_json({value}.url))"
        return f"coalesce({url}, {_base64(f'{value}.size')}, 0) + {_AROUND}"

    def identity(self, value: str, scope: Scope) -> str:
        """By content, whatever it is called; but a URL is all that we know of it."""
        del scope
        url = f"CAST(to_json({value}.url) AS VARCHAR)"
        return f"coalesce({url}, '\"sha256:' || {value}.sha256 || '\"')"

    def problem(self, value: str, scope: Scope) -> str:
        """What the API would refuse, at the price of a whole batch's wait."""
        no_such = scope.bind(f"Column {self.column!r} holds {self.no_such}.")
        return f"""CASE
            WHEN {value}.url IS NOT NULL THEN NULL
            WHEN {value}.problem IS NOT NULL THEN {value}.problem
            WHEN {value}.media_type IS NULL THEN {no_such}
            {self._too_large(value, scope)} END"""

    def _too_large(self, value: str, scope: Scope) -> str:
        if self.most_base64 is None:
            return ""
        size = _base64(f"{value}.size")
        begin = scope.bind(f"Column {self.column!r} holds a picture that is too large: ")
        end = scope.bind(
            f" bytes as base64, and the API takes {self.most_base64}. Use Image(…, resize=True)."
        )
        return f"WHEN {size} > {self.most_base64:d} THEN {begin} || {size} || {end}"


@dataclass(frozen=True)
class _Resized(_FileSource):
    """A picture that is scaled down as it is written; until then it counts as it is."""

    def _changes_bytes(self, scope: Scope) -> bool:
        return scope.writes


def image_source(column: str, max_edge: int | None) -> Leaf:
    """A picture; with ``max_edge``, one with no more pixels of its longer edge.

    Raises:
        ImportError: Pillow is not installed, and is needed.
    """
    kind, most = (_FileSource, MAX_IMAGE_BASE64) if max_edge is None else (_Resized, None)
    return kind(
        column,
        {"image": max_edge},
        files.image_reader(max_edge),
        _picture_by_first_bytes,
        files.NO_PICTURE,
        most,
    )


def document_source(column: str, media_type: MediaType | None) -> Leaf:
    """A PDF or plain text."""
    return _DocumentSource(column, media_type)


@dataclass(frozen=True)
class _DocumentSource:
    """A PDF or plain text, as the type of its column says where ``media_type`` does not."""

    column: str
    media_type: MediaType | None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def structure(self) -> object:
        return {"document": self.media_type}

    def _as(self, scope: Scope) -> Leaf:
        is_blob = scope.types[self.column] == "BLOB"
        if self.media_type == "application/pdf" or (is_blob and self.media_type is None):
            reads, first_bytes = files.read_pdf, _pdf_by_first_bytes
            return _FileSource(self.column, None, reads, first_bytes, files.NO_PDF)
        return _TextSource(self.column)

    def value(self, scope: Scope) -> str:
        return self._as(scope).value(scope)

    def json(self, value: str, scope: Scope) -> str:
        return self._as(scope).json(value, scope)

    def size(self, value: str, scope: Scope) -> str:
        return self._as(scope).size(value, scope)

    def identity(self, value: str, scope: Scope) -> str:
        return self._as(scope).identity(value, scope)

    def problem(self, value: str, scope: Scope) -> str:
        return self._as(scope).problem(value, scope)


@dataclass(frozen=True)
class _TextSource:
    """A document that is plain text; BLOBs are UTF-8. Its value is the text, or NULL."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def structure(self) -> object:
        return None

    def value(self, scope: Scope) -> str:
        alias = scope.aliases[self.column]
        is_blob = scope.types[self.column] == "BLOB"
        return f"TRY(decode({alias}))" if is_blob else f"CAST({alias} AS VARCHAR)"

    def json(self, value: str, scope: Scope) -> str:
        del scope
        opening = '{"type":"text","media_type":"text/plain","data":'
        return f"'{opening}' || to_json({value}) || '}}'"

    def size(self, value: str, scope: Scope) -> str:
        del scope
        return f"strlen(to_json({value})) + {_AROUND}"

    def identity(self, value: str, scope: Scope) -> str:
        del scope
        return f"CAST(to_json({value}) AS VARCHAR)"

    def problem(self, value: str, scope: Scope) -> str:
        no_text = scope.bind(f"Column {self.column!r} holds no text in UTF-8.")
        blank = scope.bind(f"Column {self.column!r} is empty.")
        return (
            f"CASE WHEN {value} IS NULL THEN {no_text} "
            f"WHEN regexp_full_match({value}, '\\s*') THEN {blank} END"
        )


def _base64(size: str) -> str:
    return f"4 * (({size} + 2) // 3)"


def _picture_by_first_bytes(data: str) -> str:
    """What a picture is by its first bytes; NULL for anything else."""
    return f"""CASE
        WHEN {data}[1:8] = '\\x89PNG\\x0D\\x0A\\x1A\\x0A'::BLOB THEN 'image/png'
        WHEN {data}[1:3] = '\\xFF\\xD8\\xFF'::BLOB THEN 'image/jpeg'
        WHEN {data}[1:4] = 'GIF8'::BLOB THEN 'image/gif'
        WHEN {data}[1:4] = 'RIFF'::BLOB AND {data}[9:12] = 'WEBP'::BLOB THEN 'image/webp' END"""


def _pdf_by_first_bytes(data: str) -> str:
    return f"CASE WHEN {data}[1:5] = '%PDF-'::BLOB THEN 'application/pdf' END"
