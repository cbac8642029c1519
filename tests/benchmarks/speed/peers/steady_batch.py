"""steadybatch: ``Runner.run`` with its checkpoint file, twice, as after a restart.

The first run may not wait, so it ends with a time-out once all is sent; the second one collects
what the checkpoint says is open. A refused request is asked once, not three times.
"""

from operator import itemgetter
from pathlib import Path
from typing import Any

import anthropic
import pandas as pd
from benchmarks.speed.data import INSTRUCTION, MAX_TOKENS, MODEL, Review
from benchmarks.speed.peers import half
from steadybatch import Request, Runner
from steadybatch.models import Outcome
from steadybatch.providers.anthropic_batch import AnthropicBatch

FIELDS = itemgetter(*Review.model_fields)


def runner(folder: Path, **options: Any) -> Runner:
    return Runner(
        AnthropicBatch(),
        MODEL,
        response_schema=anthropic.transform_schema(Review),
        checkpoint=folder / "steadybatch.sqlite",
        max_attempts=1,
        poll_every=0,
        **options,
    )


def requests(folder: Path) -> list[Request]:
    return [
        Request(
            key=str(row_id),
            messages=[{"role": "user", "content": f"{INSTRUCTION}\n\n{text}"}],
            max_tokens=MAX_TOKENS,
        )
        for row_id, text in half.read(folder)
    ]


def submit(folder: Path) -> str:
    asked = requests(folder)
    try:
        runner(folder, timeout=0).run(asked)
    except TimeoutError:
        return f"{len(asked)} rows"
    raise AssertionError("nothing was sent")


def collect(folder: Path) -> str:
    report = runner(folder).run(requests(folder))
    answers: list[tuple[Any, ...]] = []
    failures: list[tuple[Any, ...]] = []
    for each in report.results:
        row_id, answer = int(each.key), each.data
        if each.outcome is not Outcome.OK:
            failures.append((row_id, each.error))
            continue
        answers.append((row_id, *FIELDS(answer), each.input_tokens, each.output_tokens))
    names = ["id", *Review.model_fields, "input_tokens", "output_tokens"]
    return half.land(
        folder,
        pd.DataFrame(answers, columns=names),
        pd.DataFrame(failures, columns=["id", "error"]),
    )


if __name__ == "__main__":
    half.run(submit, collect)
