"""Foreign text on its way into a message: one line, printable, and no longer than needed."""

from typing import Final

_LONGEST: Final = 300


def one_line(text: str, *, longest: int = _LONGEST) -> str:
    """Escape what could pass for another line of a log or steer a terminal, and shorten it."""
    shown = text[:longest] + ("…" if len(text) > longest else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
