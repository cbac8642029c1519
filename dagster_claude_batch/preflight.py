"""Before the first chunk: what would fail every row, found out for nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Self

import anthropic
from anthropic.types import ModelCapabilities, ModelInfo

from dagster_claude_batch import ledger
from dagster_claude_batch.bodies import Body, example_params
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.doubt import CLOCK_SKEW
from dagster_claude_batch.errors import (
    ClaudeBatchError,
    ClockError,
    CredentialsRefusedError,
    ModelUnavailableError,
    NoCredentialsError,
    RequestRefusedError,
)
from dagster_claude_batch.ledger import Materialization
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.outcomes import is_halt
from dagster_claude_batch.planning import REQUEST_OVERHEAD
from dagster_claude_batch.resource import UNANSWERED
from dagster_claude_batch.workbench import Workbench, is_passing


def check_model(bench: Workbench, materialization: Materialization) -> None:
    """Ask once whether the model exists and can do what is asked; note its limits.

    The same answer shows whether our clock is right: a batch that nobody has seen to be created
    is told from others by when it was.

    An API that cannot be reached blocks nothing.

    Raises:
        ModelUnavailableError: It does not, or cannot. The materialization is closed.
        CredentialsRefusedError: It may not be asked with these credentials.
        ClockError: Our clock is wrong.
    """
    if materialization.model_max_tokens is not None:
        return
    model, asked_at = bench.declaration.shape.model, bench.claude.now()
    try:
        found, theirs = bench.claude.model_and_time(model)
    except NoCredentialsError:
        bench.close(materialization, if_unsent=True)
        raise
    except UNANSWERED as error:
        if not is_passing(error):
            bench.close(materialization, if_unsent=True)
            asset, reason = bench.declaration.asset, one_line(str(error))
            raise CredentialsRefusedError(asset, reason) from error
        bench.log.warning("The model could not be checked (%s); going on.", type(error).__name__)
        return
    try:
        _refuse_unfit(bench, found, _ahead(asked_at, theirs, bench.claude.now()))
    except ClaudeBatchError:
        bench.close(materialization, if_unsent=True)
        raise
    limit = found.max_tokens if found else None
    if limit is not None:
        identity = materialization.materialization_id
        bench.warehouse.transact(
            lambda connection: ledger.note_model_limit(connection, identity, limit)
        )


@dataclass(frozen=True)
class Counted:
    """A request whose input tokens the API has counted, and its bytes as planned."""

    tokens: int
    bytes: int

    @classmethod
    def of(cls, tokens: int, params: str) -> Self:
        """The same for the JSON text of ``params``."""
        return cls(tokens, len(params.encode()) + REQUEST_OVERHEAD)


def check_shape(bench: Workbench, materialization: Materialization, body: Body) -> list[Counted]:
    """Let the API look at a request as it will be sent, for nothing: it counts its tokens.

    If it would refuse it, another one shows whether that is for its row alone, which then fails
    alone; so does an only one. An API that cannot be reached blocks nothing, nor one that counts
    none. What it counted of a few requests is returned.

    Raises:
        RequestRefusedError: It would refuse all. The materialization is closed.
    """
    first, *others = example_params(body, _LOOKED_AT)
    try:
        counted = _count(bench, first)
    except RequestRefusedError as refused:
        found = _count_accepted(bench, others[:1])
        if not others or found:
            bench.log.warning("The API would refuse a request, of one row alone.")
            return found
        if not bench.close(materialization, if_unsent=True):
            # Whoever works on it too has to look as well, before it sends.
            identity = materialization.materialization_id
            bench.warehouse.transact(
                lambda connection: ledger.note_model_limit(connection, identity, None)
            )
        raise refused from None
    return [] if counted is None else [counted, *_count_accepted(bench, others)]


_LOOKED_AT: Final = 3


def _count_accepted(bench: Workbench, examples: Sequence[Mapping[str, Any]]) -> list[Counted]:
    """Count those of some requests that the API would not refuse, as long as it counts any."""
    found: list[Counted] = []
    for params in examples:
        try:
            counted = _count(bench, params)
        except RequestRefusedError:
            continue
        if counted is None:
            break
        found.append(counted)
    return found


def _count(bench: Workbench, params: Mapping[str, Any]) -> Counted | None:
    tokens = count_tokens(bench, params)
    text = json.dumps(params, ensure_ascii=False, separators=(",", ":"))
    return None if tokens is None else Counted.of(tokens, text)


def count_tokens(bench: Workbench, params: Mapping[str, Any]) -> int | None:
    """Count the input tokens of a request; None if the API does not.

    Raises:
        RequestRefusedError: It would refuse the request.
    """
    asked = {name: value for name, value in params.items() if name in _COUNTED}
    try:
        return bench.claude.count_tokens(asked)
    except anthropic.BadRequestError as error:
        if not is_halt(error.api_message):
            reason = one_line(error.api_message or str(error))
            raise RequestRefusedError(bench.declaration.asset, reason) from None
        problem = "the account"
    except UNANSWERED as error:
        problem = type(error).__name__
    bench.log.warning("Tokens could not be counted (%s).", problem)
    return None


_COUNTED: Final = (
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "cache_control",
)
"""What of ``params`` matters to the number of input tokens."""


def check_for_rehearsal(bench: Workbench) -> str | None:
    """Check for a dry run what `check_model` does; what kept it from asking, or None.

    Raises:
        ModelUnavailableError, CredentialsRefusedError, ClockError: As there.
    """
    asked_at = bench.claude.now()
    try:
        found, theirs = bench.claude.model_and_time(bench.declaration.shape.model)
    except NoCredentialsError as error:
        return type(error).__name__
    except UNANSWERED as error:
        if is_passing(error):
            return type(error).__name__
        raise CredentialsRefusedError(bench.declaration.asset, one_line(str(error))) from error
    _refuse_unfit(bench, found, _ahead(asked_at, theirs, bench.claude.now()))
    return None


def _refuse_unfit(bench: Workbench, found: ModelInfo | None, ahead: timedelta) -> None:
    """Refuse a model that cannot do what is asked, and a clock that is wrong."""
    declaration = bench.declaration
    problem = _problem_with(found, declaration)
    if problem is not None:
        raise ModelUnavailableError(declaration.asset, declaration.shape.model, problem)
    if abs(ahead) > CLOCK_SKEW:
        raise ClockError(declaration.asset, ahead)


def _ahead(asked_at: datetime, theirs: datetime | None, now: datetime) -> timedelta:
    """How far our clock is ahead of theirs, at the least: they answered at some time between."""
    if theirs is None or asked_at <= theirs <= now:
        return timedelta()
    return asked_at - theirs if theirs < asked_at else now - theirs


def _problem_with(found: ModelInfo | None, declaration: Declaration) -> str | None:
    """Why the API would refuse each row, as the end of a sentence about the model."""
    if found is None:
        return "does not exist, or this API key may not use it."
    if found.lifecycle == "retired":
        return "is retired."
    together = 1 if declaration.packing is None else declaration.packing.rows_per_request
    if found.max_tokens is not None and declaration.max_tokens * together > found.max_tokens:
        of_rows = f" for each of {together:,} rows in a request" if together > 1 else ""
        return (
            f"answers with at most {found.max_tokens:,} tokens, but `max_tokens` is "
            f"{declaration.max_tokens:,}{of_rows}."
        )
    return _lack_of(found.capabilities, declaration) if found.capabilities is not None else None


def _lack_of(abilities: ModelCapabilities, declaration: Declaration) -> str | None:
    """What a model is not able to do of what is asked, in the same way."""
    shape = declaration.shape
    needed = (
        (True, abilities.batch, "cannot be used in batches."),
        (
            shape.schema is not None or declaration.packing is not None,
            abilities.structured_outputs,
            "has no structured outputs, which `output` needs.",
        ),
        (shape.has_pictures, abilities.image_input, "takes no pictures, which `prompt` has."),
        (shape.has_pdfs, abilities.pdf_input, "takes no PDFs, which `prompt` has."),
        (shape.effort is not None, abilities.effort, "takes no effort, which `params` has."),
    )
    return next(
        (lack for is_needed, ability, lack in needed if is_needed and not ability.supported), None
    )
