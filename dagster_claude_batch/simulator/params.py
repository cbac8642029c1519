"""What the API finds wrong with the ``params`` of a request: hours after it was submitted."""

from __future__ import annotations

from functools import lru_cache
from json import loads

from dagster_claude_batch.sdk_types import (
    problem_with_content,
    problem_with_message,
    problem_with_param,
    problem_with_tool,
)
from dagster_claude_batch.simulator.errors import invalid
from dagster_claude_batch.simulator.json_values import (
    Params,
    canonical,
    is_array,
    is_integer,
    is_number,
    part,
)
from dagster_claude_batch.simulator.models import Model, usable_model
from dagster_claude_batch.simulator.schema_rules import problem_with_schema
from dagster_claude_batch.simulator.tokens import breakpoints, input_tokens

MAX_BREAKPOINTS = 4

_SAMPLING = {"temperature": 1, "top_p": 1, "top_k": None}
_NOT_IN_A_BATCH = ("stream", "speed")
_CHECKED_BY_HAND = frozenset({"model", "max_tokens", "messages", *_NOT_IN_A_BATCH})
_MIN_THINKING_BUDGET = 1_024


def check(params: Params) -> Model:
    """Check the params of a row in a batch and return the model that they name.

    Raises:
        ApiError: What the row ends as: ``not_found_error`` for the model,
            ``invalid_request_error`` naming the field for everything else.
    """
    model = check_prompt(params)
    for name in _NOT_IN_A_BATCH:
        if params.get(name):
            raise invalid(f"{name}: '{name}' is not supported in the Message Batches API")
    _check_max_tokens(params, model)
    _check_sampling(params, model)
    return model


def check_prompt(params: Params) -> Model:
    """Check what counting tokens checks too: the model and the shape of the prompt.

    Raises:
        ApiError: As :func:`check`.
    """
    model = _model(params)
    for name, value in params.items():
        _check_field(name, value)
    _check_messages(params, model)
    _check_thinking(params, model)
    _check_tools(params)
    _check_output(params, model)
    _check_size(params, model)
    return model


def _model(params: Params) -> Model:
    if "model" not in params:
        raise invalid("model: Field required")
    if not isinstance(params["model"], str):
        raise invalid("model: Input should be a valid string")
    return usable_model(params["model"])


def _check_max_tokens(params: Params, model: Model) -> None:
    if "max_tokens" not in params:
        raise invalid("max_tokens: Field required")
    max_tokens = params["max_tokens"]
    if not is_integer(max_tokens):
        raise invalid("max_tokens: Input should be a valid integer")
    if max_tokens < 1:
        raise invalid("max_tokens: Input should be greater than or equal to 1 in a batch")
    if max_tokens > model.max_tokens:
        raise invalid(
            f"max_tokens: {max_tokens} > {model.max_tokens}, which is the maximum allowed number "
            f"of output tokens for {model.id}"
        )
    budget = part(params, "thinking").get("budget_tokens", 0)
    if budget >= max_tokens:
        raise invalid("max_tokens: must be greater than thinking.budget_tokens")


def _check_sampling(params: Params, model: Model) -> None:
    for name, default in _SAMPLING.items():
        value = params.get(name)
        if value is None:
            continue
        if not is_number(value) or value < 0 or (name != "top_k" and value > 1):
            raise invalid(f"{name}: Input should be a number in the allowed range")
        if model.current and value != default:
            raise invalid(f"{name}: '{name}' is not supported by this model")


def _check_field(name: str, value: object) -> None:
    if name in _CHECKED_BY_HAND:
        return
    problem = problem_with_param(name, value)
    if problem is not None:
        raise invalid(problem)


def _check_messages(params: Params, model: Model) -> None:
    if "messages" not in params:
        raise invalid("messages: Field required")
    messages = params["messages"]
    if not is_array(messages):
        raise invalid("messages: Input should be a valid list")
    if not messages:
        raise invalid("messages: at least one message is required")
    for position, message in enumerate(messages):
        problem = problem_with_message(message, f"messages.{position}")
        if problem is not None:
            raise invalid(problem)
    if model.current and messages[-1]["role"] == "assistant":
        raise invalid(
            "messages: This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )
    problem = problem_with_content(params.get("system") or [], "system")
    if problem is not None:
        raise invalid(problem)


def _check_thinking(params: Params, model: Model) -> None:
    thinking: Params | None = params.get("thinking")
    if thinking is None:
        return
    kind = thinking.get("type")
    if kind not in model.thinking:
        allowed = ", ".join(sorted(model.thinking))
        raise invalid(f"thinking.type: {kind!r} is not supported by this model ({allowed})")
    if kind == "enabled" and not _enough(thinking.get("budget_tokens")):
        raise invalid(
            f"thinking.budget_tokens: Input should be at least {_MIN_THINKING_BUDGET} tokens"
        )


def _enough(budget: object) -> bool:
    return is_integer(budget) and budget >= _MIN_THINKING_BUDGET


def _check_tools(params: Params) -> None:
    tools: list[Params] = params.get("tools") or []
    for position, tool in enumerate(tools):
        _check_tool(tool, f"tools.{position}")
    choice: Params | None = params.get("tool_choice")
    if choice is None:
        return
    if not tools:
        raise invalid("tool_choice: may only be specified while providing tools")
    match choice.get("type"):
        case "auto" | "any" | "none":
            pass
        case "tool":
            if choice.get("name") not in {tool.get("name") for tool in tools}:
                raise invalid(f"tool_choice.name: Tool {choice.get('name')!r} not found in tools")
        case other:
            raise invalid(f"tool_choice.type: Input tag {other!r} is not expected")


def _check_tool(tool: Params, where: str) -> None:
    problem = problem_with_tool(tool, where)
    if problem is None and tool.get("strict"):
        problem = _schema_problem(canonical(tool["input_schema"]), f"{where}.input_schema")
    if problem is not None:
        raise invalid(problem)


def _check_output(params: Params, model: Model) -> None:
    config: Params = params.get("output_config") or {}
    if config.get("effort") and not model.current:
        raise invalid("output_config.effort: This model does not support the effort parameter")
    if not config.get("format"):
        return
    if not model.structured_outputs:
        raise invalid("output_config.format: This model does not support structured outputs")
    schema = canonical(config["format"]["schema"])
    problem = _schema_problem(schema, "output_config.format.schema")
    if problem is not None:
        raise invalid(problem)


@lru_cache(maxsize=256)
def _schema_problem(schema: str, where: str) -> str | None:
    problem = problem_with_schema(loads(schema))
    return problem and f"{where}: {problem}"


def _check_size(params: Params, model: Model) -> None:
    if breakpoints(params) > MAX_BREAKPOINTS:
        raise invalid(f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided")
    tokens = input_tokens(params)
    if tokens > model.max_input_tokens:
        raise invalid(f"prompt is too long: {tokens} tokens > {model.max_input_tokens} maximum")
