"""The ``source`` of a picture or a document: a leaf for each kind."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from dagster_claude_batch.chunking import MAX_REQUEST_BYTES
from dagster_claude_batch.request import files
from dagster_claude_batch.request.files import PDFS, PICTURES, READ, Format, Shrink
from dagster_claude_batch.request.leaf import Leaf, Scope

MediaType: TypeAlias = Literal["application/pdf", "text/plain"]

MOST_PICTURE_BYTES: Final = 5 * 1024 * 1024 * 3 // 4
"""Bytes of one picture: as base64, the API takes 5 MiB of it."""

MOST_PDF_BYTES: Final = (MAX_REQUEST_BYTES - 1_000_000) * 3 // 4
"""Bytes of one PDF: as base64 it has to fit into a request, beside all else."""

MOST_PICTURE_TOKENS: Final = 5_000
"""Tokens of one picture: those that see most of it take up to 4,784."""

MOST_PDF_TOKENS: Final = 1_000_000
"""Tokens of one PDF: no model reads more at a time."""

_AROUND: Final = 60
"""Bytes of a source besides its data, at the most."""


@dataclass(frozen=True)
class _FileSource:
    """Bytes as base64, or a URL. Its value is a `files.READ`.

    ``what`` is what it should be, ``cure`` what helps if it is too large. It is at most so many
    tokens.
    """

    column: str
    structure: object
    formats: tuple[Format, ...]
    what: str
    most_bytes: int
    cure: str
    most_tokens: int
    shrink: Shrink | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def value(self, scope: Scope) -> str:
        """Of BLOBs in SQL, unless they are to be made small; of what is named, in Python."""
        alias, is_blob = scope.aliases[self.column], scope.types[self.column] == "BLOB"
        if is_blob and not (self.shrink and scope.writes):
            data = alias if scope.writes else "CAST(NULL AS BLOB)"
            size = f"octet_length({alias})"
            if self.shrink:
                size = f"least({size}, {self.most_bytes:d})"
            return (
                f"struct_pack(url := CAST(NULL AS VARCHAR), data := {data}, size := {size}, "
                f"sha256 := sha256({alias}), problem := CAST(NULL AS VARCHAR), "
                f"media_type := {files.media_type_sql(alias, self.formats)})"
            )
        kind = "BLOB" if is_blob else "VARCHAR"
        read = files.reader(self.formats, self.what, shrink=self.shrink, keeps_data=scope.writes)
        return scope.call(read, f"CAST({alias} AS {kind})", takes=kind, returns=READ)

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
        url, data = f"strlen(to_json({value}.url))", f"4 * (({value}.size + 2) // 3)"
        return f"coalesce({url}, {data}, 0) + {_AROUND}"

    def surplus(self, value: str, scope: Scope) -> str:
        """It is read as a picture or as pages, however many bytes it has."""
        del scope
        data, most = f"4 * (({value}.size + 2) // 3)", self.most_tokens
        tokens = f"{most:d}" if self.formats == PICTURES else f"least({data}, {most:d})"
        return f"CASE WHEN {value}.url IS NOT NULL THEN -{most:d} ELSE {data} - {tokens} END"

    def identity(self, value: str, scope: Scope) -> str:
        """By content, whatever it is called; but a URL is all that we know of it."""
        del scope
        url = f"CAST(to_json({value}.url) AS VARCHAR)"
        return f"coalesce({url}, '\"sha256:' || {value}.sha256 || '\"')"

    def problem(self, value: str, scope: Scope) -> str:
        """What the API would refuse, at the price of a whole batch's wait."""
        no_such = scope.bind(f"Column {self.column!r} holds no {self.what}.")
        large = scope.bind(
            f"What column {self.column!r} holds is too large: more than {self.most_bytes:,} bytes. "
            f"{self.cure}"
        )
        # What is made small is not known to be, until it is.
        is_large = "false" if self.shrink else f"{value}.size > {self.most_bytes:d}"
        return f"""CASE
            WHEN {value}.url IS NOT NULL THEN NULL
            WHEN {value}.problem IS NOT NULL THEN {value}.problem
            WHEN {value}.media_type IS NULL THEN {no_such}
            WHEN {is_large} THEN {large} END"""


def image_source(column: str, max_edge: int | None) -> Leaf:
    """A picture; with ``max_edge``, one with no more pixels of its longer edge."""
    return _FileSource(
        column,
        {"image": max_edge},
        PICTURES,
        "PNG, JPEG, GIF or WebP picture",
        MOST_PICTURE_BYTES,
        "Use Image(…, resize=True).",
        MOST_PICTURE_TOKENS,
        None if max_edge is None else Shrink(max_edge, MOST_PICTURE_BYTES),
    )


def _pdf_source(column: str) -> Leaf:
    return _FileSource(
        column,
        None,
        PDFS,
        "PDF",
        MOST_PDF_BYTES,
        "Split it, or let Claude read it from a URL.",
        MOST_PDF_TOKENS,
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
        is_pdf = self.media_type == "application/pdf" or (
            self.media_type is None and scope.types[self.column] == "BLOB"
        )
        return _pdf_source(self.column) if is_pdf else _TextSource(self.column)

    def value(self, scope: Scope) -> str:
        return self._as(scope).value(scope)

    def json(self, value: str, scope: Scope) -> str:
        return self._as(scope).json(value, scope)

    def size(self, value: str, scope: Scope) -> str:
        return self._as(scope).size(value, scope)

    def surplus(self, value: str, scope: Scope) -> str | None:
        return self._as(scope).surplus(value, scope)

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

    def surplus(self, value: str, scope: Scope) -> str | None:
        """None: no token is shorter than a byte."""
        del value, scope
        return None

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
