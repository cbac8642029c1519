"""What the UI's partition bar says, as one status for each partition key."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

PartitionStatus = Literal["materialized", "failed", "materializing", "missing"]


def partition_statuses(
    dimensions: Sequence[dict[str, Any]], statuses: dict[str, Any]
) -> dict[str, PartitionStatus]:
    """Return the status of every partition of an asset, in the order of its keys.

    ``dimensions`` are the ``DimensionPartitionKeys`` of the asset, ``statuses`` its
    ``AssetPartitionStatuses``. The key of a multi-partition is written as Dagster does:
    its dimensions' keys in the order of their names, with ``|`` between them. An asset without
    partitions has none.
    """
    if not dimensions:
        return {}
    ordered = sorted(dimensions, key=lambda dimension: dimension["name"])
    keys = product(*(dimension["partitionKeys"] for dimension in ordered))
    result: dict[str, PartitionStatus] = {"|".join(key): "missing" for key in keys}
    if statuses["__typename"] == "MultiPartitionStatuses":
        known = _of_two_dimensions({d["name"]: d["partitionKeys"] for d in ordered}, statuses)
    else:
        known = _of_one_dimension(ordered[0]["partitionKeys"], statuses)
    return result | dict(known)


def _of_one_dimension(
    keys: Sequence[str], statuses: dict[str, Any]
) -> Iterator[tuple[str, PartitionStatus]]:
    if statuses["__typename"] == "TimePartitionStatuses":
        for span in statuses["ranges"]:
            for key in _between(keys, span["startKey"], span["endKey"]):
                yield key, span["status"].lower()
        return
    for key in statuses["materializedPartitions"]:
        yield key, "materialized"
    for key in statuses["failedPartitions"]:
        yield key, "failed"
    for key in statuses["materializingPartitions"]:
        yield key, "materializing"


def _of_two_dimensions(
    keys: dict[str, Sequence[str]], statuses: dict[str, Any]
) -> Iterator[tuple[str, PartitionStatus]]:
    primary = statuses["primaryDimensionName"]
    secondary = next(name for name in keys if name != primary)
    for span in statuses["ranges"]:
        inner = dict(_of_one_dimension(keys[secondary], span["secondaryDim"]))
        outer = _between(keys[primary], span["primaryDimStartKey"], span["primaryDimEndKey"])
        for primary_key, (secondary_key, status) in product(outer, inner.items()):
            by_name = {primary: primary_key, secondary: secondary_key}
            yield "|".join(by_name[name] for name in keys), status


def _between(keys: Sequence[str], first: str, last: str) -> Sequence[str]:
    return keys[keys.index(first) : keys.index(last) + 1]
