"""Which runs are a sensor's to look after."""

from dataclasses import dataclass

import dagster as dg

from dagster_claude_batch import held_run
from dagster_claude_batch.dagster_internals import LOCATION_TAG, location_tags


@dataclass(frozen=True)
class Ours:
    """The runs of one Claude resource in one code location, by their tags.

    Several code locations share an instance, and may call their resources alike. ``location`` is
    None where there is none, as in a test: then all are ours.
    """

    claude_resource: str
    location: str | None

    @classmethod
    def of_run(cls, run: dg.DagsterRun, claude_resource: str) -> "Ours":
        """Those to which a run belongs that uses this resource."""
        return cls(claude_resource, location_tags(run).get(LOCATION_TAG))

    def tags(self, name: str = held_run.HELD_TAG) -> dict[str, str]:
        """What each of them carries; ``name`` is the tag whose value is the resource."""
        return {**self.located(), name: self.claude_resource}

    def located(self) -> dict[str, str]:
        """What all runs of the code location carry, whatever their resource."""
        return {} if self.location is None else {LOCATION_TAG: self.location}

    def include(self, run: dg.DagsterRun) -> bool:
        """Whether a held run is one of them."""
        return self.tags().items() <= run.tags.items()

    def watchers(self, instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
        """Those that have sent something anew whose first batch may still appear."""
        tags = self.tags(held_run.GAVE_UP_TAG)
        return list(instance.get_runs(dg.RunsFilter(tags=tags), limit=100))

    def stop_watching(self, instance: dg.DagsterInstance) -> None:
        """Note that no such batch can appear any more."""
        for run in self.watchers(instance):
            instance.add_run_tags(run.run_id, {held_run.GAVE_UP_TAG: "none of it has appeared"})
