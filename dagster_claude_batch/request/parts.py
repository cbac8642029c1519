"""What a prompt may be made of besides text: pictures and documents out of columns."""

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from dagster_claude_batch.request.sources import MediaType, document_source, image_source
from dagster_claude_batch.request.template import Template

USEFUL_EDGE: Final = 1_568
"""Pixels of the longer edge above which most models scale a picture down before they see it."""


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
            1,568, above which most models do it themselves. They are turned upright, become JPEGs
            where they would be too large else, and of animations the first picture is left. Needs
            Pillow: ``pip install 'dagster-claude-batch[images]'``.
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
        return {"type": "image", "source": image_source(self.column, self.max_edge)}


@dataclass(frozen=True)
class Document:
    """A document: a PDF, or plain text.

    Args:
        column: The column: BLOBs are PDFs, and VARCHAR is text, unless ``media_type`` says else.
        title: What Claude is told the document is called, a template.
        context: What else Claude is told about it, a template; it is not cited from.
        citations: Let Claude cite the document: what it cites becomes the column ``citations``, a
            list in JSON. The API has no citations beside an ``output``.
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
            "source": document_source(self.column, self.media_type),
        }
        for name, text in (("title", self.title), ("context", self.context)):
            if text is not None:
                parsed = Template.parse(text, name=f"The {name} of a document")
                block[name] = parsed if parsed.columns else text
        if self.citations:
            block["citations"] = {"enabled": True}
        return block


Part: TypeAlias = Text | Image | Document
