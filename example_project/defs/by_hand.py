"""Jobs that somebody may start now and then: collect, reconcile, cancel, prune, delete."""

import dagster as dg

from dagster_claude_batch import build_claude_batch_jobs


@dg.definitions
def by_hand() -> dg.Definitions:
    """See the README, *By hand*."""
    return dg.Definitions(jobs=build_claude_batch_jobs())
