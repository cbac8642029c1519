"""Ask Claude about every row of a DuckDB table: partitioned Dagster assets over batches."""

from importlib.metadata import version

from dagster_shared.libraries import DagsterLibraryRegistry

from dagster_claude_batch.assets import build_claude_batch_asset
from dagster_claude_batch.component import ClaudeBatchComponent
from dagster_claude_batch.config import ClaudeBatchConfig
from dagster_claude_batch.definitions import claude_batch_definitions
from dagster_claude_batch.errors import ClaudeBatchError
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
    "build_claude_batch_jobs",
    "build_claude_batch_sensor",
    "build_claude_batch_spending_asset",
    "claude_batch_definitions",
    "claude_batch_sensor",
]

DagsterLibraryRegistry.register("dagster-claude-batch", __version__, is_dagster_package=False)
