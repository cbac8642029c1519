"""Values that fit a JSON schema: what the simulator answers when nobody told it what to answer.

``pattern`` is not honoured. Limits that the SDK moved into a description, where only a model
would read them (``{minimum: 0, maximum: 1}``), are.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from dagster_claude_batch.simulator.json_values import is_array, is_object
from dagster_claude_batch.simulator.schema_rules import resolve

if TYPE_CHECKING:
    from random import Random

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "indigo", "jade")
_HINT = re.compile(r"\b(\w+): (-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?=[,}])")


def value_for(schema: dict[str, Any], random: Random) -> object:
    """Make a value that fits, chosen by ``random`` alone."""
    return _Generator(schema, random).value(schema)


class _Generator:
    def __init__(self, root: dict[str, Any], random: Random) -> None:
        self._root = root
        self._random = random

    def value(self, schema: object) -> object:
        if not is_object(schema):
            return {}
        if "const" in schema:
            return schema["const"]
        for keyword in ("enum", "anyOf"):
            if schema.get(keyword):
                chosen = self._random.choice(schema[keyword])
                return chosen if keyword == "enum" else self.value(chosen)
        if "$ref" in schema:
            return self.value(resolve(schema["$ref"], self._root))
        if "allOf" in schema:
            return self.value(self._merged(schema["allOf"]))
        return self._typed(schema)

    def _merged(self, schemas: list[Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for schema in schemas:
            resolved = resolve(schema["$ref"], self._root) if "$ref" in schema else schema
            properties = {**merged.get("properties", {}), **(resolved or {}).get("properties", {})}
            merged |= resolved or {}
            if properties:
                merged["properties"] = properties
        return merged

    def _typed(self, schema: dict[str, Any]) -> object:
        kind = schema.get("type", "object")
        make = {
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": self._boolean,
            "null": self._null,
        }
        return make.get(self._random.choice(kind) if is_array(kind) else kind, self._object)(schema)

    def _boolean(self, _schema: dict[str, Any]) -> bool:
        return self._random.choice((True, False))

    def _null(self, _schema: dict[str, Any]) -> None:
        return None

    def _object(self, schema: dict[str, Any]) -> dict[str, object]:
        properties = schema.get("properties")
        if not is_object(properties):
            return {}
        return {name: self.value(each) for name, each in properties.items()}

    def _array(self, schema: dict[str, Any]) -> list[object]:
        hints = _hints(schema)
        fewest = int(hints.get("minItems", 1))
        most = int(hints.get("maxItems", max(fewest, 3)))
        length = self._random.randint(min(fewest, most), most)
        return [self.value(schema.get("items", {"type": "string"})) for _ in range(length)]

    def _integer(self, schema: dict[str, Any]) -> int:
        hints = _hints(schema)
        low = hints.get("minimum", hints.get("exclusiveMinimum", -math.inf) + 1)
        high = hints.get("maximum", hints.get("exclusiveMaximum", math.inf) - 1)
        low, high = _range(low, high, width=100)
        return self._random.randint(math.ceil(low), math.floor(high))

    def _number(self, schema: dict[str, Any]) -> float:
        hints = _hints(schema)
        low = hints.get("minimum", hints.get("exclusiveMinimum", -math.inf))
        high = hints.get("maximum", hints.get("exclusiveMaximum", math.inf))
        low, high = _range(low, high, width=1)
        return round(low + (high - low) * self._random.randint(1, 99) / 100, 6)

    def _string(self, schema: dict[str, Any]) -> str:
        if "format" in schema:
            return self._formatted(schema["format"])
        hints = _hints(schema)
        text = " ".join(self._random.choices(_WORDS, k=2))
        return text.ljust(int(hints.get("minLength", 0)), ".")[: int(hints.get("maxLength", 99))]

    def _formatted(self, name: str) -> str:
        one = self._random.randint
        day = f"20{one(20, 26)}-{one(1, 12):02}-{one(1, 28):02}"
        time = f"{one(0, 23):02}:{one(0, 59):02}:{one(0, 59):02}Z"
        word = self._random.choice(_WORDS)
        examples = {
            "date": day,
            "time": time,
            "date-time": f"{day}T{time}",
            "duration": f"PT{one(1, 59)}M",
            "email": f"{word}@example.com",
            "hostname": f"{word}.example.com",
            "uri": f"https://example.com/{word}",
            "ipv4": f"192.0.2.{one(1, 254)}",
            "ipv6": f"2001:db8::{one(1, 65535):x}",
            "uuid": f"00000000-0000-4000-8000-{one(0, 2**48 - 1):012x}",
        }
        return examples.get(name, word)


def _hints(schema: dict[str, Any]) -> dict[str, float]:
    """Read the limits of a schema: keywords (tools may have them) or the SDK's description."""
    described: list[tuple[str, str]] = _HINT.findall(str(schema.get("description", "")))
    said = {name: float(number) for name, number in described}
    return said | {name: float(value) for name, value in schema.items() if _is_limit(name, value)}


def _is_limit(name: str, value: object) -> bool:
    return isinstance(value, int | float) and name.lower().startswith(("m", "exclusivem"))


def _range(low: float, high: float, *, width: int) -> tuple[float, float]:
    """Bounds without infinities, ``width`` apart where one is missing."""
    if low == -math.inf:
        low = 0 if high == math.inf or high > 0 else high - width
    return low, high if high != math.inf else low + width
