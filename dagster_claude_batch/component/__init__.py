"""The same declarations from YAML, for `dg`."""

from collections.abc import Sequence
from typing import Annotated, Final

import dagster as dg
import pydantic
from pydantic import ConfigDict, Field

from dagster_claude_batch.component.asset import ClaudeBatchAsset
from dagster_claude_batch.definitions import (
    DEFAULT_RESOURCE,
    claude_batch_definitions,
    jobs_name,
)
from dagster_claude_batch.failures import build_claude_batch_failures_spec
from dagster_claude_batch.jobs import build_claude_batch_jobs


class ScaffoldParams(pydantic.BaseModel):
    """What `dg scaffold defs` may be told about the first asset."""

    source: str | None = Field(default=None, description="The table that is asked about.")
    row_key: str | None = Field(default=None, description="The column that identifies a row.")
    prompt: str | None = Field(default=None, description="With {{ column }} for a column.")


class ClaudeBatchScaffolder(dg.Scaffolder[ScaffoldParams]):
    """Writes a `defs.yaml` with one asset, called as the folder."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldParams]:
        """What it may be told."""
        return ScaffoldParams

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldParams]) -> None:
        """Write the file."""
        params = request.params or ScaffoldParams()
        asset = {
            "key": request.target_path.name,
            "source": params.source or "texts",
            "row_key": params.row_key or "id",
            "prompt": params.prompt or "Sum this up in one sentence:\n\n{{ text }}",
        }
        dg.scaffold_component(request, {"assets": [asset]})


_ASSETS: Final = "The assets, one or more."
_SENSOR: Final = (
    "Whether the sensor that collects comes along, once for all that need it. Say false for one of "
    "your own."
)
_FAILURES: Final = (
    "Whether each failures table is an asset of its own in the lineage, on which others can depend."
)
_JOBS: Final = (
    "Whether the jobs come along that collect, reconcile, cancel, prune and delete by hand, for "
    "all assets of the code location that use the same Claude resources."
)


@dg.scaffold_with(ClaudeBatchScaffolder)
class ClaudeBatchComponent(dg.Component, dg.Model, dg.Resolvable):
    """Assets whose rows are Claude's answers to the rows of DuckDB tables, asked in batches.

    Each is declared by the arguments of `build_claude_batch_asset`, under the same names. In
    ``prompt`` and ``system``, ``{{ column }}`` stands for a column; everywhere else
    ``{{ … }}`` is a template of Dagster's. The sensor that collects comes with them, once for all
    files of a code location.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    assets: Annotated[Sequence[ClaudeBatchAsset], dg.Resolver.default(description=_ASSETS)]
    sensor: Annotated[bool, dg.Resolver.default(description=_SENSOR)] = True
    jobs: Annotated[bool, dg.Resolver.default(description=_JOBS)] = False
    failures: Annotated[bool, dg.Resolver.default(description=_FAILURES)] = False

    @classmethod
    def get_model_cls(cls) -> type[pydantic.BaseModel]:
        """What the YAML has to look like.

        Dagster's own model would take a template for the whole list too, and so would find what is
        wrong with an asset only in the line where the list begins.
        """
        of_asset = ClaudeBatchAsset.model()
        return pydantic.create_model(
            cls.__name__,
            __base__=dg.Model,
            __doc__=cls.__doc__,
            assets=(list[of_asset], Field(description=_ASSETS, min_length=1)),  # pyright: ignore[reportInvalidTypeForm]  # made here
            sensor=(bool | str, Field(default=True, description=_SENSOR)),
            jobs=(bool | str, Field(default=False, description=_JOBS)),
            failures=(bool | str, Field(default=False, description=_FAILURES)),
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, the sensors that collect for them, and the jobs if they are wanted."""
        del context
        assets = [asset.build() for asset in self.assets]
        resources = {asset.claude_resource or DEFAULT_RESOURCE for asset in self.assets}
        jobs = [
            job
            for resource in sorted(resources if self.jobs else ())
            for job in build_claude_batch_jobs(jobs_name(resource), claude_resource=resource)
        ]
        sensors = claude_batch_definitions(*assets).sensors if self.sensor else None
        failures = map(build_claude_batch_failures_spec, assets) if self.failures else ()
        return dg.Definitions(assets=[*assets, *failures], sensors=sensors, jobs=jobs)
