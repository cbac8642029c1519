"""What a person sees who clicks *Materialize* in Dagster's UI: the wait, and then green."""

import os
import shutil
from collections.abc import Iterator
from typing import Final

import pytest
from e2e_stage import Stage
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")
MUST_CLICK: Final = "MUST_CLICK_IN_A_BROWSER"
"""If this environment variable is set, a missing browser is a failure."""

SECONDS: Final = 1_000.0


@pytest.fixture
def page() -> Iterator[Page]:
    if CHROMIUM is None:
        reason = "neither `chromium` nor `google-chrome` is installed"
        if MUST_CLICK in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        opened = browser.new_page(viewport={"width": 1500, "height": 950})
        opened.set_default_timeout(60 * SECONDS)
        expect.set_options(timeout=60 * SECONDS)
        yield opened
        browser.close()


def test_a_person_clicks_materialize_sees_the_wait_and_then_green(stage: Stage, page: Page) -> None:
    stage.ask("clicked", 10, cities=("amsterdam", "berlin", "copenhagen"))

    page.goto(f"{stage.dagster.url}/assets/clicked?view=partitions")
    page.get_by_role("button", name="Materialize…").click()
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_role("button", name="Launch").last.click()
    stage.wait_until_it_waits("clicked")
    page.goto(f"{stage.dagster.url}/assets/clicked?view=partitions")
    expect(page.get_by_text("Materializing (3)")).to_be_visible(timeout=60 * SECONDS)
    page.get_by_text("berlin", exact=True).first.click()
    expect(page.get_by_text("that targets this partition is queued")).to_be_visible()
    page.goto(f"{stage.dagster.url}/assets/clicked?view=events")
    expect(page.get_by_text("Waiting for 1 Claude batch with 30 requests.").first).to_be_visible()
    _look_at_the_run_that_waits(stage, page)

    page.goto(f"{stage.dagster.url}/assets/clicked?view=partitions")
    stage.simulator.end_batches()
    expect(page.get_by_text("Materialized (3)")).to_be_visible(timeout=120 * SECONDS)
    expect(page.get_by_text("Materializing (0)")).to_be_visible()


def _look_at_the_run_that_waits(stage: Stage, page: Page) -> None:
    """Its tags say what it waits for, and the name of its pool too."""
    (held,) = [run for run in stage.dagster.runs_of("clicked") if run.status == "QUEUED"]
    page.goto(f"{stage.dagster.url}/runs/{held.run_id}")
    page.get_by_role("button", name="View tags and config").click()
    expect(page.get_by_text("claude_batch: waiting since").first).to_be_visible()
    page.goto(f"{stage.dagster.url}/deployment/concurrency")
    pool = f"waiting_for_claude_batch/{held.run_id[:8]}"
    expect(page.get_by_text(pool).first).to_be_visible()
