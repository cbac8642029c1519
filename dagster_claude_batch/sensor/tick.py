"""One tick, step by step."""

import dagster as dg

from dagster_claude_batch import dagster_internals
from dagster_claude_batch.sensor import landing, left_behind, looking, pools, queue, said
from dagster_claude_batch.sensor.scene import Held, Scene


def tick(scene: Scene) -> dg.SensorResult:
    """Do what is due, and say what is waited for. A step that fails keeps no other from its work.

    Without the runs of the first step nothing can be decided: then the tick fails, and the next
    one begins where this one did.
    """
    found = queue.read_queue(scene)
    lacking = dagster_internals.missing(scene.instance)
    ours = dict(found.runs) if lacking is None else {}
    problem, look = None, looking.Look()
    waiting: list[Held] = []
    released: set[str] = set()
    requests: list[dg.RunRequest] = []
    progress: list[dg.AssetObservation] = []
    others: list[dg.DagsterRun] = []
    with scene.boundary("Not every run was put into the queue"):
        queue.enqueue_left_behind(scene, ours)
    with scene.boundary("No run was let go"):
        waiting = queue.waiting_ones(scene, ours)
        problem, look = looking.look(scene, [held for held, _ in waiting])
        released = queue.release(scene, ours, waiting, look)
    with scene.boundary("Not every run was brought back"):
        if lacking is None:
            left_behind.bring_back(scene)
    with scene.boundary("Runs in reserve were not deleted"):
        left_behind.drop_reserves(scene, found.reserves)
    with scene.boundary("Runs that ended were not noted"):
        left_behind.notice_ended(scene, found.runs)
    with scene.boundary("Old pools were not deleted"):
        if lacking is None:
            others = pools.sweep(scene, [*found.runs.values(), *found.reserves])
    with scene.boundary("No landing run was asked for"):
        requests = landing.requests(scene)
    left = [pair for pair in waiting if pair[0].run_id not in released]
    with scene.boundary("Progress was not said"):
        progress = said.progress(scene, left, look)
    problems = [*([problem] if problem else []), *scene.problems]
    if lacking is None:
        summary = said.summary(scene, [held for held, _ in left], released, problems)
    else:
        summary = " ".join([*problems, said.of_no_held_runs(lacking, found.runs.values())])
    summary += said.may_have_been_renamed(scene, found.elsewhere)
    summary += said.have_no_sensor(scene, others)
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(summary),
        cursor=scene.remember(),
        asset_events=progress,
    )
