"""A row → request parameters: SQL that renders, hashes and serializes inside DuckDB."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

HASH_VERSION: Final = "v1"
"""Begins every request hash. A new version asks every row again: change it never lightly."""

_PLACEHOLDER: Final = re.compile(r"\{\{\s*([^{}\s](?:[^{}]*[^{}\s])?)\s*\}\}")


@dataclass(frozen=True)
class Template:
    """A prompt in which ``{{ column }}`` stands for a column; everything else is text.

    ``texts`` has one element more than ``columns``: the text before, between and after them.
    """

    texts: tuple[str, ...] = field(repr=False)  # no prompt in a log
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Split at the placeholders; braces that do not enclose a name are text."""
        parts = _PLACEHOLDER.split(text)
        return cls(texts=tuple(parts[0::2]), columns=tuple(parts[1::2]))

    @property
    def used_columns(self) -> tuple[str, ...]:
        """Each column once, in the order of first use."""
        return tuple(dict.fromkeys(self.columns))

    def sql(self, aliases: Mapping[str, str]) -> str:
        """An expression for the prompt, NULL where a used column is.

        ``aliases`` maps a column to the SQL that yields it. Texts are the parameters of
        `parameters`.
        """
        pieces = ["$prompt_0"]
        for number, column in enumerate(self.columns, start=1):
            pieces += [f"CAST({aliases[column]} AS VARCHAR)", f"$prompt_{number}"]
        return " || ".join(pieces)

    def parameters(self) -> dict[str, str]:
        """The texts, bound by name."""
        return {f"prompt_{number}": text for number, text in enumerate(self.texts)}


@dataclass(frozen=True)
class RequestShape:
    """All of a request that is the same for every row of an asset.

    ``declared_schema`` is the output as the user declared it, whose hash outlives the spelling of
    ``schema``, which is what the API is sent.
    """

    model: str
    system: str | list[dict[str, Any]] | None = field(repr=False)  # no prompt in a log
    params: Mapping[str, Any] = field(repr=False)
    schema: Mapping[str, Any] | None
    declared_schema: Mapping[str, Any] | None

    def digest(self) -> str:
        """Identify what was declared, without what may change without changing the question."""
        declared = {
            "model": self.model,
            "system": self.system,
            "params": {k: v for k, v in self.params.items() if k not in _NOT_HASHED},
            # The order of its properties is part of what Claude is asked: not sorted.
            "output": None if self.declared_schema is None else json.dumps(self.declared_schema),
        }
        return hashlib.sha256(canonical_json(declared)).hexdigest()[:32]

    def around(self, *, max_tokens: int) -> tuple[str, str]:
        """The JSON text of ``params`` before and after the row's own content."""
        fixed: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens}
        if self.system is not None:
            fixed["system"] = self.system
        fixed |= self.params
        if self.schema is not None:
            output_format = {"type": "json_schema", "schema": self.schema}
            fixed["output_config"] = {**fixed.get("output_config", {}), "format": output_format}
        head = json.dumps(fixed, ensure_ascii=False, separators=(",", ":"))
        return f'{head[:-1]},"messages":[{{"role":"user","content":', "}]}"


_NOT_HASHED: Final = frozenset({"max_tokens", "cache_control", "metadata", "service_tier"})
"""Parameters that do not change what is asked."""


def canonical_json(value: object) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def hash_sql(prompt: str) -> str:
    """An expression for the request hash of a rendered prompt; needs ``$request_digest``."""
    return f"'{HASH_VERSION}:' || left(sha256($request_digest || chr(10) || {prompt}), 32)"


def request_hash(shape: RequestShape, prompt: str) -> str:
    """The same hash in Python: what `hash_sql` computes, for one prompt."""
    text = f"{shape.digest()}\n{prompt}".encode()
    return f"{HASH_VERSION}:{hashlib.sha256(text).hexdigest()[:32]}"
