"""What a prompt may be made of besides text: pictures and documents out of columns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from dagster_claude_batch.request import files
from dagster_claude_batch.request.leaf import Scope
from dagster_claude_batch.request.template import Template

USEFUL_EDGE: Final = 1_568
"""Pixels of the longer edge above which most models scale a picture down before they see it."""

MAX_IMAGE_BASE64: Final = 5 * 1024 * 1024
"""Bytes of one picture as base64; the API refuses larger ones."""

_PNG, _JPEG, _GIF = ("'\\x89PNG\\x0D\\x0A\\x1A\\x0A'", "'\\xFF\\xD8\\xFF'", "'GIF8'")

MediaType: TypeAlias = Literal["application/pdf", "text/plain"]


@dataclass(frozen=True)
class Text:
    """Text of a prompt: a template in which ``{{ column }}`` stands for a column."""

    template: str = field(repr=False)  # no prompt in a log

    def block(self) -> dict[str, Any]:
        """A content block, with a leaf where the row matters."""
        parsed = Template.parse(self.template, name="A text of the prompt")
        return {"type": "text", "text": parsed if parsed.columns else self.template}


@dataclass(frozen=True)
class Image:
    """A picture: a column of BLOBs, or of URLs or paths of files.

    PNG, JPEG, GIF and WebP are told by their first bytes. A URL is read by Claude; a file by the
    run, wherever that is. A row whose picture is NULL, no picture, or too large is not asked.

    Args:
        column: The column. VARCHAR that begins with ``http://`` or ``https://`` is a URL.
        resize: Scale larger pictures down to so many pixels of their longer edge; ``True`` means
            1,568, above which most models do it themselves. Needs Pillow:
            ``pip install 'dagster-claude-batch[images]'``.
    """

    column: str
    resize: bool | int = False

    @property
    def max_edge(self) -> int | None:
        """To what a larger picture is scaled down, in pixels."""
        if self.resize is True:
            return USEFUL_EDGE
        return self.resize or None

    def block(self) -> dict[str, Any]:
        """A content block, with a leaf where the row matters."""
        return {"type": "image", "source": _ImageSource(self.column, self.max_edge)}


@dataclass(frozen=True)
class Document:
    """A document: a PDF, or plain text.

    Args:
        column: The column: BLOBs are PDFs, and VARCHAR is text, unless ``media_type`` says else.
        title: What Claude is told the document is called, a template.
        context: What else Claude is told about it, a template; it is not cited from.
        citations: Let Claude cite the document. The API has no citations beside an ``output``.
        media_type: ``"application/pdf"`` for a VARCHAR column of URLs or paths of PDFs,
            ``"text/plain"`` for BLOBs that are text in UTF-8.
    """

    column: str
    title: str | None = None
    context: str | None = None
    citations: bool = False
    media_type: MediaType | None = None

    def block(self) -> dict[str, Any]:
        """A content block, with a leaf where the row matters."""
        block: dict[str, Any] = {
            "type": "document",
            "source": _DocumentSource(self.column, self.media_type),
        }
        for name, text in (("title", self.title), ("context", self.context)):
            if text is not None:
                parsed = Template.parse(text, name=f"The {name} of a document")
                block[name] = parsed if parsed.columns else text
        if self.citations:
            block["citations"] = {"enabled": True}
        return block


Part: TypeAlias = Text | Image | Document


# --- sources --------------------------------------------------------------------------------


def _read(
    scope: Scope, column: str, read: Callable[[str | bytes | None], files.Read], *, blobs: bool
) -> str:
    """A STRUCT as `files.READ`; without ``blobs``, BLOBs are taken as they are, in SQL."""
    alias, kind = scope.aliases[column], scope.types[column]
    if kind != "BLOB":
        return scope.call(read, f"CAST({alias} AS VARCHAR)", takes="VARCHAR", returns=files.READ)
    if blobs:
        return scope.call(read, alias, takes="BLOB", returns=files.READ)
    return (
        f"struct_pack(url := CAST(NULL AS VARCHAR), data := {alias}, sha256 := sha256({alias}), "
        "problem := CAST(NULL AS VARCHAR))"
    )


@dataclass(frozen=True)
class _ImageSource:
    """The ``source`` of an image block."""

    column: str
    max_edge: int | None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def structure(self) -> object:
        return {"image": self.max_edge}

    def value(self, scope: Scope) -> str:
        read = files.image_reader(self.max_edge)
        return _read(scope, self.column, read, blobs=self.max_edge is not None)

    def json(self, value: str) -> str:
        url = f'\'{{"type":"url","url":\' || to_json({value}.url) || \'}}\''
        data = (
            f'\'{{"type":"base64","media_type":"\' || {_media_type(f"{value}.data")} || '
            f'\'","data":"\' || to_base64({value}.data) || \'"}}\''
        )
        return f"CASE WHEN {value}.url IS NOT NULL THEN {url} ELSE {data} END"

    def size(self, value: str) -> str:
        return _source_size(value)

    def identity(self, value: str, scope: Scope) -> str:
        del scope
        return _source_identity(value)

    def problem(self, value: str) -> str:
        """What the API would refuse, at the price of a whole batch's wait."""
        name = _quoted(self.column)
        kind = f"Column ''{name}'' holds no PNG, JPEG, GIF or WebP picture."
        large = f"The picture in column ''{name}'' is too large: as base64 it has "
        allowed = f" bytes, and the API takes {MAX_IMAGE_BASE64}. Use Image(…, resize=True)."
        size = f"{_base64_size(f'{value}.data')}"
        return f"""CASE
            WHEN {value}.url IS NOT NULL THEN NULL
            WHEN {value}.problem IS NOT NULL THEN {value}.problem
            WHEN {_media_type(f"{value}.data")} IS NULL THEN '{kind}'
            WHEN {size} > {MAX_IMAGE_BASE64} THEN '{large}' || {size} || '{allowed}' END"""


@dataclass(frozen=True)
class _DocumentSource:
    """The ``source`` of a document block."""

    column: str
    media_type: MediaType | None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def structure(self) -> object:
        return {"document": self.media_type}

    def value(self, scope: Scope) -> str:
        """As `files.READ`, and text."""
        is_blob = scope.types[self.column] == "BLOB"
        if self.media_type == "application/pdf" or (is_blob and self.media_type is None):
            read = _read(scope, self.column, files.read_pdf, blobs=False)
            return f"struct_insert({read}, text := CAST(NULL AS VARCHAR))"
        alias = scope.aliases[self.column]
        text = f"TRY(decode({alias}))" if is_blob else f"CAST({alias} AS VARCHAR)"
        return (
            "struct_pack(url := CAST(NULL AS VARCHAR), data := CAST(NULL AS BLOB), "
            "sha256 := CAST(NULL AS VARCHAR), "
            f"problem := CASE WHEN {text} IS NULL THEN '{self._no_text}' END, text := {text})"
        )

    @property
    def _no_text(self) -> str:
        return f"Column ''{_quoted(self.column)}'' holds no text in UTF-8."

    def json(self, value: str) -> str:
        text = (
            f'\'{{"type":"text","media_type":"text/plain","data":\' || '
            f"to_json({value}.text) || '}}'"
        )
        url = f'\'{{"type":"url","url":\' || to_json({value}.url) || \'}}\''
        data = (
            f'\'{{"type":"base64","media_type":"application/pdf","data":"\' || '
            f"to_base64({value}.data) || '\"}}'"
        )
        return (
            f"CASE WHEN {value}.text IS NOT NULL THEN {text} "
            f"WHEN {value}.url IS NOT NULL THEN {url} ELSE {data} END"
        )

    def size(self, value: str) -> str:
        text = f"strlen(to_json({value}.text)) + {_AROUND}"
        return f"CASE WHEN {value}.text IS NOT NULL THEN {text} ELSE {_source_size(value)} END"

    def identity(self, value: str, scope: Scope) -> str:
        del scope
        text = f"CAST(to_json({value}.text) AS VARCHAR)"
        return f"coalesce({text}, {_source_identity(value)})"

    def problem(self, value: str) -> str:
        no_pdf = f"Column ''{_quoted(self.column)}'' holds no PDF."
        is_pdf = f"coalesce({value}.data[1:5] = '%PDF-'::BLOB, false)"
        blank = f"Column ''{_quoted(self.column)}'' is empty."
        return f"""CASE
            WHEN {value}.problem IS NOT NULL THEN {value}.problem
            WHEN regexp_full_match({value}.text, '\\s*') THEN '{blank}'
            WHEN {value}.text IS NULL AND {value}.url IS NULL AND NOT {is_pdf}
                THEN '{no_pdf}' END"""


_AROUND: Final = 60
"""Bytes of a source besides its data, at the most."""


def _quoted(column: str) -> str:
    """A column's name within a SQL string."""
    return column.replace("'", "''")


def _media_type(data: str) -> str:
    """What a picture is by its first bytes; NULL for anything else."""
    return f"""CASE
        WHEN {data}[1:8] = {_PNG}::BLOB THEN 'image/png'
        WHEN {data}[1:3] = {_JPEG}::BLOB THEN 'image/jpeg'
        WHEN {data}[1:4] = {_GIF}::BLOB THEN 'image/gif'
        WHEN {data}[1:4] = 'RIFF'::BLOB AND {data}[9:12] = 'WEBP'::BLOB THEN 'image/webp' END"""


def _base64_size(data: str) -> str:
    return f"4 * ((octet_length({data}) + 2) // 3)"


def _source_size(value: str) -> str:
    return f"coalesce(strlen(to_json({value}.url)), {_base64_size(f'{value}.data')}, 0) + {_AROUND}"


def _source_identity(value: str) -> str:
    """By content, whatever it is called; but a URL is all that we know."""
    return (
        f"CASE WHEN {value}.url IS NOT NULL THEN CAST(to_json({value}.url) AS VARCHAR) "
        f"ELSE '\"sha256:' || {value}.sha256 || '\"' END"
    )
