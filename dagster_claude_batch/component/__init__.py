"""The same declarations from YAML, for `dg`."""

import itertools
from collections.abc import Sequence
from typing import Annotated, Final

import dagster as dg
import pydantic
from pydantic import ConfigDict, Field

from dagster_claude_batch.component.asset import ClaudeBatchAsset
from dagster_claude_batch.definitions import claude_batch_definitions, sensor_name


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
    "Whether the sensor that collects comes along. Say false if your definitions have it already."
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
            assets=(list[of_asset], Field(description=_ASSETS, min_length=1)),  # pyright: ignore[reportInvalidTypeForm]  # made here
            sensor=(bool | str, Field(default=True, description=_SENSOR)),
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, and the sensors that collect for them."""
        assets = [asset.build() for asset in self.assets]
        found = claude_batch_definitions(*assets)
        if not self.sensor:
            return dg.Definitions(assets=assets)
        there = {name for each in self._before(context) for name in each.sensor_names()}
        sensors = [sensor for sensor in found.sensors or () if sensor.name not in there]
        return dg.Definitions(assets=assets, sensors=sensors)

    def sensor_names(self) -> frozenset[str]:
        """The sensors that the component's assets need, if they come from here."""
        if not self.sensor:
            return frozenset()
        return frozenset(sensor_name(asset.claude_resource) for asset in self.assets)

    def _before(self, context: dg.ComponentLoadContext) -> list["ClaudeBatchComponent"]:
        """The components of this kind that are loaded before this one: a sensor is needed once."""
        every = context.component_tree.get_all_components(ClaudeBatchComponent)
        return list(itertools.takewhile(lambda each: each is not self, every))
