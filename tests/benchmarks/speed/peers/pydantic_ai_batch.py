"""Pydantic AI: the ``batch_*`` methods of its model, which are for collecting in another process.

Its agents and ``model_request_batch`` wait where they asked. ``batch_decode`` is given one request
for all results, because it reads settings and output from it, but not the messages.
"""

import asyncio
import json
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
from benchmarks.speed.data import INSTRUCTION, MAX_TOKENS, MODEL, Review
from benchmarks.speed.peers import half
from pydantic import TypeAdapter
from pydantic_ai import ModelRequest
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.batch import Batch, BatchRequest, EncodedBatchRequest
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings

BATCHES = TypeAdapter(list[Batch])
SETTINGS = ModelSettings(max_tokens=MAX_TOKENS)
PARAMETERS = ModelRequestParameters(
    output_mode="native",
    output_object=OutputObjectDefinition(json_schema=Review.model_json_schema(), name="Review"),
)
FIELDS = itemgetter(*Review.model_fields)


def request(custom_id: str, messages: list[ModelMessage]) -> BatchRequest:
    return BatchRequest(
        custom_id=custom_id,
        messages=messages,
        model_settings=SETTINGS,
        model_request_parameters=PARAMETERS,
    )


def submit(folder: Path) -> str:
    return asyncio.run(send(folder))


def collect(folder: Path) -> str:
    return asyncio.run(fetch(folder))


async def send(folder: Path) -> str:
    model = AnthropicModel(MODEL)
    encoded = [
        await model.batch_encode(
            request(f"review-{row_id}", [ModelRequest.user_text_prompt(f"{INSTRUCTION}\n\n{text}")])
        )
        for row_id, text in half.read(folder)
    ]
    batches = [await model.batch_create(chunk) for chunk in chunks(model, encoded)]
    state(folder).write_bytes(BATCHES.dump_json(batches))
    return f"{len(encoded)} rows"


def chunks(
    model: AnthropicModel, encoded: list[EncodedBatchRequest]
) -> Iterator[list[EncodedBatchRequest]]:
    """As many as the model says that a batch takes."""
    assert model.batch_max_requests is not None
    assert model.batch_max_bytes is not None
    chunk: list[EncodedBatchRequest] = []
    size = 0
    for each in encoded:
        more = model.batch_request_size(each)
        if len(chunk) == model.batch_max_requests or size + more > model.batch_max_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(each)
        size += more
    yield chunk


async def fetch(folder: Path) -> str:
    model = AnthropicModel(MODEL)
    like_all = request("any", [])
    answers: list[tuple[Any, ...]] = []
    failures: list[tuple[Any, ...]] = []
    for batch in BATCHES.validate_json(state(folder).read_bytes()):
        for each in await model.batch_results(await model.batch_status(batch)):
            row_id = int(each.custom_id.removeprefix("review-"))
            try:
                response = model.batch_decode(each, like_all)
            except ModelAPIError as error:
                failures.append((row_id, str(error)))
                continue
            assert response.text is not None
            answer = json.loads(response.text)
            usage = response.usage
            answers.append((row_id, *FIELDS(answer), usage.input_tokens, usage.output_tokens))
    names = ["id", *Review.model_fields, "input_tokens", "output_tokens"]
    return half.land(
        folder,
        pd.DataFrame(answers, columns=names),
        pd.DataFrame(failures, columns=["id", "error"]),
    )


def state(folder: Path) -> Path:
    return folder / "state.json"


if __name__ == "__main__":
    half.run(submit, collect)
