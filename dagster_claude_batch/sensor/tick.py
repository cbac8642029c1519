"""One tick, step by step."""

import dagster as dg

from dagster_claude_batch.sensor import landing, left_behind, looking, pools, queue, said
from dagster_claude_batch.sensor.scene import Scene


def tick(scene: Scene) -> dg.SensorResult:
    """Do what is due, and say what is waited for."""
    runs, elsewhere = queue.held_runs(scene)
    queue.enqueue_left_behind(scene, runs)
    waiting = queue.waiting_ones(scene, runs)
    problem, look = looking.look(scene, [held for held, _ in waiting])
    released = queue.release(scene, runs, waiting, look)
    left_behind.bring_back(scene)
    left_behind.notice_ended(scene, runs)
    pools.sweep(scene, runs)
    requests = landing.requests(scene)
    left = [pair for pair in waiting if pair[0].run_id not in released]
    progress = said.progress(scene, left, look)
    summary = said.summary(scene, [held for held, _ in left], released, problem)
    summary += said.may_have_been_renamed(scene, elsewhere)
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(summary),
        cursor=scene.remember(),
        asset_events=progress,
    )
