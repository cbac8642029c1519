"""Text in which ``{{ column }}`` stands for a column of the source."""

import re
from dataclasses import dataclass, field, replace
from typing import Final

from dagster_claude_batch.request.leaf import Scope

_PLACEHOLDER: Final = re.compile(r"\{\{\s*([^{}\s](?:[^{}]*[^{}\s])?)\s*\}\}")


@dataclass(frozen=True)
class Template:
    """Text in which ``{{ column }}`` stands for a column; everything else is text.

    ``texts`` has one element more than ``columns``: the text before, between and after them.
    ``before`` is constant text that stands in a block of its own in front; it is part of what the
    row is asked all the same.
    """

    texts: tuple[str, ...] = field(repr=False)  # no prompt in a log
    placeholders: tuple[str, ...]
    before: str = field(default="", repr=False)
    name: str = "The prompt"

    @classmethod
    def parse(cls, text: str, *, name: str = "The prompt") -> "Template":
        """Split at the placeholders; braces that do not enclose a name are text."""
        parts = _PLACEHOLDER.split(text)
        return cls(texts=tuple(parts[0::2]), placeholders=tuple(parts[1::2]), name=name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Each column once, in the order of first use."""
        return tuple(dict.fromkeys(self.placeholders))

    @property
    def structure(self) -> object:
        """Nothing: all of its text is in what is rendered."""
        return "text"

    def split(self) -> tuple[str, "Template"]:
        """The constant text in front but for its last word's end, and what follows it.

        Something that can be seen stays in what follows, for Claude refuses a block without.
        """
        first, *others = self.texts
        end = max(0, len(first.rstrip()) - 1)
        front, rest = first[:end], first[end:]
        return front, replace(self, texts=(rest, *others), before=self.before + front)

    def value(self, scope: Scope) -> str:
        """The rendered text, NULL where a used column is."""
        pieces = [scope.bind(self.texts[0])]
        for column, text in zip(self.placeholders, self.texts[1:], strict=True):
            pieces += [f"CAST({scope.aliases[column]} AS VARCHAR)", scope.bind(text)]
        return " || ".join(pieces)

    def json(self, value: str, scope: Scope) -> str:
        """A JSON string."""
        del scope
        return f"CAST(to_json({value}) AS VARCHAR)"

    def size(self, value: str, scope: Scope) -> str:
        """Its bytes, quotes and escapes included."""
        del scope
        return f"strlen(to_json({value}))"

    def text(self, value: str, scope: Scope) -> str:
        """The whole text, with what stands in a block in front."""
        return f"{scope.bind(self.before)} || {value}" if self.before else value

    def surplus(self, value: str, scope: Scope) -> str | None:
        """None: no token is shorter than a byte."""
        del value, scope
        return None

    def identity(self, value: str, scope: Scope) -> str:
        """The whole text, as JSON."""
        return f"CAST(to_json({self.text(value, scope)}) AS VARCHAR)"

    def problem(self, value: str, scope: Scope) -> str:
        """Claude refuses text without a character to be seen."""
        blank = f"regexp_full_match({value}, '\\s*')"
        return f"CASE WHEN {blank} THEN {scope.bind(f'{self.name} is empty.')} END"
