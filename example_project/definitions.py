"""Everything below `defs/`, as one code location."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Load every asset, check, sensor and resource of this project."""
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
