"""Assets and the sensors that they need, together."""

from functools import cache
from typing import Final

import dagster as dg

from dagster_claude_batch.batch_asset import batch_asset
from dagster_claude_batch.sensor import build_claude_batch_sensor, claude_batch_sensor

DEFAULT_RESOURCE: Final = "claude_batch"
"""Key of the Claude resource where none is named."""


def claude_batch_definitions(
    *assets: dg.AssetsDefinition | dg.AssetSpec | dg.SourceAsset,
) -> dg.Definitions:
    """Definitions of assets, with the sensor without which nobody collects their answers.

    One sensor for each Claude resource that they name: `claude_batch_sensor` for ``claude_batch``,
    ``claude_batch_sensor_<resource>`` for others. Merge it with your own by
    `dagster.Definitions.merge`; assets of other kinds are taken along.
    """
    found = (batch_asset(each) for each in assets)
    resources = dict.fromkeys(each.claude_resource for each in found if each is not None)
    return dg.Definitions(assets=assets, sensors=[_sensor_of(name) for name in resources])


def jobs_name(claude_resource: str) -> str:
    """What the names of the jobs of a Claude resource begin with."""
    if claude_resource == DEFAULT_RESOURCE:
        return DEFAULT_RESOURCE
    return f"{DEFAULT_RESOURCE}_{claude_resource}"


@cache
def _sensor_of(claude_resource: str) -> dg.SensorDefinition:
    if claude_resource == DEFAULT_RESOURCE:
        return claude_batch_sensor
    name = f"{claude_batch_sensor.name}_{claude_resource}"
    return build_claude_batch_sensor(name, claude_resource=claude_resource)
