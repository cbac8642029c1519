"""Ask Claude about every row of a DuckDB table: partitioned Dagster assets over batches."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from dagster_shared.libraries import DagsterLibraryRegistry

if TYPE_CHECKING:
    from dagster_claude_batch.assets import build_claude_batch_asset
    from dagster_claude_batch.component import ClaudeBatchComponent
    from dagster_claude_batch.config import ClaudeBatchConfig
    from dagster_claude_batch.definitions import claude_batch_definitions
    from dagster_claude_batch.errors import ClaudeBatchError
    from dagster_claude_batch.failures import build_claude_batch_failures_spec
    from dagster_claude_batch.jobs import build_claude_batch_jobs
    from dagster_claude_batch.request.parts import Document, Image, Text
    from dagster_claude_batch.resource import ClaudeBatchResource, LocalClaudeBatchResource
    from dagster_claude_batch.sensor import build_claude_batch_sensor, claude_batch_sensor
    from dagster_claude_batch.spending import build_claude_batch_spending_asset

__version__ = version("dagster-claude-batch")

__all__ = [
    "ClaudeBatchComponent",
    "ClaudeBatchConfig",
    "ClaudeBatchError",
    "ClaudeBatchResource",
    "Document",
    "Image",
    "LocalClaudeBatchResource",
    "Text",
    "build_claude_batch_asset",
    "build_claude_batch_failures_spec",
    "build_claude_batch_jobs",
    "build_claude_batch_sensor",
    "build_claude_batch_spending_asset",
    "claude_batch_definitions",
    "claude_batch_sensor",
]

_MODULES: Final = {
    "ClaudeBatchComponent": "component",
    "ClaudeBatchConfig": "config",
    "ClaudeBatchError": "errors",
    "ClaudeBatchResource": "resource",
    "Document": "request.parts",
    "Image": "request.parts",
    "LocalClaudeBatchResource": "resource",
    "Text": "request.parts",
    "build_claude_batch_asset": "assets",
    "build_claude_batch_failures_spec": "failures",
    "build_claude_batch_jobs": "jobs",
    "build_claude_batch_sensor": "sensor",
    "build_claude_batch_spending_asset": "spending",
    "claude_batch_definitions": "definitions",
    "claude_batch_sensor": "sensor",
}
"""Where the public names are: the SDK, which takes longer to load than Dagster, comes with them."""


if not TYPE_CHECKING:  # to a type checker, a name that is not there is an error

    def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever has that name
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


DagsterLibraryRegistry.register("dagster-claude-batch", __version__, is_dagster_package=False)
