"""A batch that has ended → its staged rows: the download, in several tries."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import IO, Final

import anthropic
from anthropic.types.messages import MessageBatch

from dagster_claude_batch.errors import ResultsUnavailableError, UnreadableAnswerError
from dagster_claude_batch.one_line import one_line
from dagster_claude_batch.output import Output
from dagster_claude_batch.resource import UNANSWERED, ClaudeBatchResource
from dagster_claude_batch.result_lines import private_file
from dagster_claude_batch.staged import Staged
from dagster_claude_batch.staging import Staging
from dagster_claude_batch.submission import size_of

PAUSES: Final = (1.0, 5.0)
"""Seconds before each further try of a download that breaks, lacks lines or has other counts."""

FINAL_AFTER: Final = timedelta(hours=1)
"""After a batch's end; until then, lines that its results lack may still come."""


# --- downloading ----------------------------------------------------------------------------


def fetch(
    claude: ClaudeBatchResource,
    batch: MessageBatch,
    output: Output,
    *,
    nonce: str | None,
    questions: Mapping[int, int] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Staged:
    """Download and read a batch's results, in several tries if lines are lacking or broken.

    ``questions`` is how many each request has, by its ordinal, of those that have several.
    What one try has read counts, whatever becomes of the next. Lines that no try brings are left
    to be missing, but only where each download came to its regular end, and long after the batch's.

    Raises:
        ResultsUnavailableError: Not all of it is here, and the rest may still come.
        OSError: The temporary directory has no room for it.
    """
    counts = batch.request_counts
    staging = Staging(
        output,
        nonce=nonce,
        size=size_of(batch),
        succeeded=counts.succeeded,
        questions=questions,
    )
    broken: list[str] = []
    for pause in (0.0, *PAUSES):
        if pause:
            sleep(pause)
        with private_file() as file:
            problem = _download(claude, batch, file)
            problem = staging.read(file) or problem
        if staging.is_complete:
            return Staged.of(staging.table())
        broken += [problem] if problem else []
    if broken:
        raise ResultsUnavailableError(batch.id, broken[-1])
    if staging.lacking and claude.now() - (batch.ended_at or batch.created_at) < FINAL_AFTER:
        lacking = f"{staging.lacking:,} of {size_of(batch):,} lines are not there, and may come."
        raise ResultsUnavailableError(batch.id, lacking)
    return Staged.of(staging.table())


def _download(claude: ClaudeBatchResource, batch: MessageBatch, file: IO[bytes]) -> str | None:
    """Download once: None, or in what way it broke; ``file`` has what had come by then."""
    try:
        claude.download(batch, file)
    except anthropic.APIStatusError as error:
        reason = one_line(f"{error.status_code} {error.api_message or error.message}")
        if isinstance(error, anthropic.NotFoundError):
            is_gone = _is_gone(claude, batch.id)
            raise ResultsUnavailableError(batch.id, f"{reason}.", is_gone=is_gone) from error
        if error.status_code in _PASSING or error.status_code >= _SERVER_ERRORS:
            return f"{reason}."
        raise
    except LookupError as error:
        is_gone = _is_gone(claude, batch.id)
        raise ResultsUnavailableError(
            batch.id, "The API shows no results.", is_gone=is_gone
        ) from error
    except (anthropic.APIConnectionError, UnreadableAnswerError) as error:
        return one_line(f"{error}.")
    return None


_PASSING: Final = frozenset({408, 409, 429})
_SERVER_ERRORS: Final = 500


def _is_gone(claude: ClaudeBatchResource, batch_id: str) -> bool:
    try:
        now = claude.retrieve(batch_id)
    except UNANSWERED:
        return False
    return now.processing_status == "ended" and now.archived_at is not None
