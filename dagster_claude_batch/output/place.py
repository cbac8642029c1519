"""The way down into a model, so that whatever is refused can be pointed at."""

from dataclasses import dataclass, replace

from dagster_claude_batch.errors import UnsupportedOutputError


@dataclass(frozen=True)
class Place:
    """Where in a model we are: for messages, and to notice a type inside itself."""

    asset: str
    path: str = ""
    enclosing: tuple[object, ...] = ()

    def field(self, name: str) -> "Place":
        """Go into a field."""
        return replace(self, path=f"{self.path}.{name}" if self.path else name)

    def item(self) -> "Place":
        """Go into the items of a collection."""
        return replace(self, path=f"{self.path}[]")

    def inside(self, kind: object) -> "Place":
        """Go into a type that has a name, and refuse it inside itself."""
        if kind in self.enclosing:
            raise self.refusal(
                "contains itself, and the API has no recursive schemas",
                "Write the levels that you need as separate models.",
            )
        return replace(self, enclosing=(*self.enclosing, kind))

    def refusal(self, problem: str, cure: str) -> UnsupportedOutputError:
        """Return the error that points here, to be raised."""
        return UnsupportedOutputError(self.asset, field=self.path, problem=problem, cure=cure)
