from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from simulated import Service, params

from dagster_claude_batch.simulator import Answer, Reply

OBJECT = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["good", "bad"]}},
    "required": ["label"],
    "additionalProperties": False,
}
TOOL = {"name": "rate", "input_schema": OBJECT}


def asked_for(schema: dict[str, Any]) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "schema": schema}}


def message(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


def some_object(**properties: object) -> dict[str, Any]:
    return {**OBJECT, "properties": properties, "required": list(properties)}


LOOP = {"$ref": "#/$defs/node", "$defs": {"node": some_object(next={"$ref": "#/$defs/node"})}}


@pytest.mark.parametrize(
    ("changes", "error_type", "named"),
    [
        ({"model": ...}, "invalid_request_error", "model"),
        ({"model": 5}, "invalid_request_error", "model"),
        ({"model": "claude-haiku-9"}, "not_found_error", "model: claude-haiku-9"),
        ({"model": "claude-3-haiku-20240307"}, "not_found_error", "model"),
        ({"max_tokens": ...}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": "100"}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": True}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 0}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 128_001}, "invalid_request_error", "max_tokens: 128001 > 128000"),
        ({"messages": ...}, "invalid_request_error", "messages"),
        ({"messages": []}, "invalid_request_error", "messages"),
        ({"messages": "hi"}, "invalid_request_error", "messages"),
        ({"messages": [message("bot", "hi")]}, "invalid_request_error", "messages.0.role"),
        ({"messages": [message("user", "")]}, "invalid_request_error", "messages.0"),
        ({"messages": [message("user", 5)]}, "invalid_request_error", "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "invalid_request_error", "messages.0.content"),
        (
            {"messages": [message("user", [{"type": "txt", "text": "hi"}])]},
            "invalid_request_error",
            "messages.0.content.0.type",
        ),
        (
            {"messages": [message("user", [{"type": "text"}])]},
            "invalid_request_error",
            "messages.0.content.0.text",
        ),
        (
            {"messages": [message("user", [{"type": "text", "text": " "}])]},
            "invalid_request_error",
            "messages.0.content.0.text",
        ),
        (
            {"messages": [message("user", [{"type": "image", "source": {"type": "base64"}}])]},
            "invalid_request_error",
            "messages.0.content.0.source",
        ),
        (
            {"messages": [message("user", "hi"), message("assistant", "{")]},
            "invalid_request_error",
            "prefill",
        ),
        ({"system": 5}, "invalid_request_error", "system"),
        ({"system": [{"type": "text"}]}, "invalid_request_error", "system.0.text"),
        ({"stream": True}, "invalid_request_error", "stream"),
        ({"speed": "fast"}, "invalid_request_error", "speed"),
        ({"temperature": 0}, "invalid_request_error", "temperature"),
        ({"top_p": 0.5}, "invalid_request_error", "top_p"),
        ({"top_k": 5}, "invalid_request_error", "top_k"),
        ({"colour": "red"}, "invalid_request_error", "colour: Extra inputs"),
        ({"stop_sequences": "x"}, "invalid_request_error", "stop_sequences"),
        ({"service_tier": "batch"}, "invalid_request_error", "service_tier"),
        ({"output_config": {"effort": "huge"}}, "invalid_request_error", "output_config.effort"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2_000}},
            "invalid_request_error",
            "thinking.type",
        ),
        ({"tool_choice": {"type": "any"}}, "invalid_request_error", "tool_choice"),
        ({"tools": [{"name": "rate"}]}, "invalid_request_error", "tools.0.input_schema"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}},
            "invalid_request_error",
            "tool_choice.name",
        ),
        (
            {"messages": [message("user", "word " * 1_000_000)]},
            "invalid_request_error",
            "prompt is too long",
        ),
    ],
)
def test_wrong_params_show_only_in_the_results(
    service: Service, changes: dict[str, Any], error_type: str, named: str
) -> None:
    right, wrong = service.ask(params(), params(**changes))

    assert right["type"] == "succeeded"
    assert wrong["type"] == "errored"
    assert wrong["error"]["error"]["type"] == error_type
    assert named in wrong["error"]["error"]["message"]
    assert wrong["error"]["request_id"].startswith("req_01")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        pytest.param({"type": "object", "properties": {}}, "additionalProperties", id="open"),
        pytest.param(some_object(n={"type": "integer", "minimum": 1}), "minimum", id="minimum"),
        pytest.param(some_object(s={"type": "string", "maxLength": 9}), "maxLength", id="length"),
        pytest.param(some_object(s={"type": "string", "format": "ean"}), "format", id="format"),
        pytest.param(
            some_object(a={"type": "array", "items": {"type": "null"}, "minItems": 2}),
            "minItems",
            id="items",
        ),
        pytest.param(some_object(x={"description": "any"}), "type is required", id="anything"),
        pytest.param(LOOP, "Circular", id="recursion"),
        pytest.param(some_object(x={"$ref": "#/$defs/none"}), "$ref", id="dangling"),
        pytest.param(
            {**some_object(**{f"p{n}": {"type": "null"} for n in range(25)}), "required": []},
            "optional parameters (25)",
            id="25 optional",
        ),
        pytest.param(
            some_object(**{f"p{n}": {"anyOf": [{"type": "null"}]} for n in range(17)}),
            "union types (17)",
            id="17 unions",
        ),
    ],
)
def test_an_unsupported_schema_errors_the_row(
    service: Service, schema: dict[str, Any], why: str
) -> None:
    (row,) = service.ask(params(output_config=asked_for(schema)))

    assert row["error"]["error"]["type"] == "invalid_request_error"
    assert "output_config.format.schema" in row["error"]["error"]["message"]
    assert why in row["error"]["error"]["message"]


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 1.0, "top_p": 1, "top_k": None, "stream": False},
        {"model": "claude-haiku-4-5", "temperature": 0.2, "top_k": 5},
        {
            "model": "claude-haiku-4-5",
            "messages": [message("user", "a"), message("assistant", "{")],
        },
        {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
        {"metadata": {"user_id": "u"}, "stop_sequences": ["END"], "service_tier": "auto"},
        {"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        {
            "model": "claude-haiku-4-5",
            "max_tokens": 2_000,
            "thinking": {"type": "enabled", "budget_tokens": 1_024},
        },
    ],
    ids=",".join,
)
def test_what_the_api_accepts_succeeds(service: Service, changes: dict[str, Any]) -> None:
    (row,) = service.ask(params(**changes))

    assert row["type"] == "succeeded", row


ERRORS = [
    *("invalid_request_error", "not_found_error", "permission_error", "authentication_error"),
    *("billing_error", "api_error", "overloaded_error", "timeout_error", "rate_limit_error"),
]


@pytest.mark.parametrize("error_type", ERRORS)
def test_a_row_can_be_made_to_fail_with_any_error(service: Service, error_type: str) -> None:
    service.open(outcome=lambda *_: f"errored:{error_type}")

    (row,) = service.ask(params())

    assert row["error"]["error"]["type"] == error_type
    assert service.simulator.bill() == []


def test_a_halted_account_speaks_of_the_credit_balance(service: Service) -> None:
    service.open(outcome=lambda *_: "halted")

    (row,) = service.ask(params())

    assert row["error"]["error"]["type"] == "invalid_request_error"
    assert "credit balance is too low" in row["error"]["error"]["message"]


@pytest.mark.parametrize("outcome", ["expired", "canceled"])
def test_a_row_can_be_made_to_end_without_being_asked(service: Service, outcome: str) -> None:
    service.open(outcome=lambda *_: outcome)
    batch = service.create(params())
    service.simulator.end_batches()

    assert service.results(batch) == {"row-0": {"type": outcome}}
    assert service.counts(batch) == {outcome: 1}
    assert service.simulator.bill() == []


@pytest.mark.parametrize(
    "stop_reason", ["refusal", "max_tokens", "pause_turn", "model_context_window_exceeded"]
)
def test_a_row_can_be_made_to_stop_short_and_is_billed(service: Service, stop_reason: str) -> None:
    service.open(outcome=lambda *_: stop_reason, answer=lambda _: "A whole answer.")
    batch = service.create(params(max_tokens=77))
    service.simulator.end_batches()

    (result,) = service.batches.results(batch.id)

    assert result.result.type == "succeeded"
    assert result.result.message.stop_reason == stop_reason
    assert "A whole answer." not in result.result.message.to_json()
    assert (result.result.message.usage.output_tokens == 77) == (stop_reason == "max_tokens")
    assert (result.result.message.stop_details is not None) == (stop_reason == "refusal")
    assert [billed.stop_reason for billed in service.simulator.bill()] == [stop_reason]


def test_a_missing_row_is_counted_and_billed_but_has_no_line(service: Service) -> None:
    service.open(outcome=lambda _, custom_id, __: "missing" if custom_id == "row-0" else None)
    batch = service.create(params(), params())
    service.simulator.end_batches()

    assert list(service.results(batch)) == ["row-1"]
    assert service.counts(batch) == {"succeeded": 2}
    assert len(service.simulator.bill()) == 2


def test_an_unknown_result_type_is_counted_as_succeeded(service: Service) -> None:
    service.open(outcome=lambda *_: "unknown")
    batch = service.create(params())
    service.simulator.end_batches()

    types = {result["type"] for result in service.results(batch).values()}
    assert not types & {"succeeded", "errored", "canceled", "expired"}
    assert service.counts(batch) == {"succeeded": 1}
    assert service.simulator.bill() == []


def test_invalid_output_is_not_the_json_that_was_asked_for(service: Service) -> None:
    service.open(outcome=lambda *_: "invalid_output")

    text = service.text(output_config=asked_for(OBJECT))

    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_an_outcome_knows_how_often_the_question_was_asked_before(service: Service) -> None:
    times: list[int] = []
    service.open(outcome=lambda _, __, seen: times.append(seen))
    other = params(messages=[message("user", "Something else.")])

    service.create(params(), params(max_tokens=5), other)
    service.open(outcome=lambda _, __, seen: times.append(seen))
    service.create(params(max_tokens=9), other)

    assert times == [0, 1, 0, 2, 1]


def test_a_refused_batch_does_not_count_as_asked(service: Service) -> None:
    times: list[int] = []
    service.open(outcome=lambda _, __, seen: times.append(seen), max_queued_requests=1)
    with pytest.raises(anthropic.RateLimitError):
        service.create(params(), params())

    service.create(params())

    assert times == [0]


@pytest.mark.parametrize("outcome", ["expird", "errored", "errored:request_too_large", 5])
def test_an_outcome_that_is_none_refuses_the_batch(service: Service, outcome: object) -> None:
    service.open(outcome=lambda *_: outcome)

    with pytest.raises(anthropic.BadRequestError, match="No batch was created"):
        service.create()

    assert service.simulator.batches() == []


def test_a_function_answers_with_text(service: Service) -> None:
    service.open(answer="simulated_functions:shout")

    assert service.text() == "RATE THE SENTIMENT: I LOVE IT."


@pytest.mark.parametrize("value", [{"label": "good", "score": 0.5}, ["a", "é"]])
def test_a_function_answers_with_a_value(service: Service, value: object) -> None:
    service.open(answer=lambda _: value)

    text = service.text()

    assert json.loads(text) == value
    assert text == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_a_function_answers_with_a_whole_reply(service: Service) -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "x"},
    ]
    service.open(answer=lambda _: Reply(content, "pause_turn", {"output_tokens": 9}))

    (row,) = service.ask(params())

    assert row["message"]["content"] == content
    assert row["message"]["stop_reason"] == "pause_turn"
    assert row["message"]["usage"]["output_tokens"] == 9


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda _: {}["label"], "KeyError: 'label'"),
        (lambda _: None, "None"),
        (lambda _: {"x": float("nan")}, "ValueError"),
    ],
    ids=["raises", "returns nothing", "returns what is no JSON"],
)
def test_an_answer_function_at_fault_errors_the_row(
    service: Service, answer: Answer, named: str
) -> None:
    service.open(answer=answer)

    (row,) = service.ask(params())

    assert row["error"]["error"]["type"] == "api_error"
    assert named in row["error"]["error"]["message"]


def test_an_answer_longer_than_max_tokens_is_cut(service: Service) -> None:
    service.open(answer=lambda _: "word " * 100)

    (row,) = service.ask(params(max_tokens=5))

    assert row["message"]["stop_reason"] == "max_tokens"
    assert row["message"]["usage"]["output_tokens"] == 5
    assert row["message"]["content"][0]["text"] == "word word word word "


def test_an_answer_ends_at_a_stop_sequence(service: Service) -> None:
    service.open(answer=lambda _: "one END two")

    (row,) = service.ask(params(stop_sequences=["END", "two"]))

    assert row["message"]["content"][0]["text"] == "one "
    assert (row["message"]["stop_reason"], row["message"]["stop_sequence"]) == (
        "stop_sequence",
        "END",
    )


def test_thinking_comes_before_the_text_and_is_billed(service: Service) -> None:
    (row,) = service.ask(params(thinking={"type": "adaptive"}))

    usage = row["message"]["usage"]
    assert [block["type"] for block in row["message"]["content"]] == ["thinking", "text"]
    assert 0 < usage["output_tokens_details"]["thinking_tokens"] < usage["output_tokens"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "rate"}])
def test_a_forced_tool_is_used(service: Service, choice: dict[str, Any]) -> None:
    (row,) = service.ask(params(tools=[TOOL], tool_choice=choice))

    (block,) = row["message"]["content"]
    assert row["message"]["stop_reason"] == "tool_use"
    assert (block["type"], block["name"]) == ("tool_use", "rate")
    assert block["id"].startswith("toolu_01")
    assert block["input"]["label"] in {"good", "bad"}


def test_a_function_gives_the_input_of_a_forced_tool(service: Service) -> None:
    service.open(answer=lambda _: {"label": "good"})

    (row,) = service.ask(params(tools=[TOOL], tool_choice={"type": "any"}))

    assert row["message"]["content"][0]["input"] == {"label": "good"}


def test_without_a_function_plain_text_comes_back(service: Service) -> None:
    assert service.text().startswith("This is a simulated answer")
