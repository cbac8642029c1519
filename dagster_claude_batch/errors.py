"""Everything that this package raises on purpose."""

import errno
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from dagster_claude_batch.one_line import one_line

if TYPE_CHECKING:
    from dagster_claude_batch.ledger import Materialization

_NOTHING_IS_LOST: Final = (
    "Nothing is lost: what had been sent is found and collected later, and never sent twice."
)


class ClaudeBatchError(Exception):
    """The base of every error of this package."""


class DeclarationError(ClaudeBatchError):
    """An asset was declared in a way that cannot work; found when the definitions load."""

    def __init__(self, asset: str, argument: str, problem: str, *, cure: str) -> None:
        super().__init__(f"Asset {asset!r}, argument `{argument}`: {problem} {cure}")


class NoBatchAssetError(ClaudeBatchError):
    """An asset of another kind is where only a batch asset can be."""

    def __init__(self, keys: Sequence[str]) -> None:
        named = ", ".join(map(repr, keys)) or "without a key"
        super().__init__(
            f"Asset {named} is not one of `build_claude_batch_asset`, so it has no failures table. "
            "Give the asset itself, as that function has returned it."
        )


class UnsupportedOutputError(DeclarationError):
    """An output model declares what the API cannot answer or a column cannot hold."""

    def __init__(self, asset: str, *, field: str, problem: str, cure: str) -> None:
        subject = f"the field `{field}`" if field else "the model"
        super().__init__(asset, "output", f"{subject} {problem}.", cure=cure)


class InvalidOutputError(ClaudeBatchError):
    """One answer does not fit the output model; it becomes a failed row.

    The message names at most five problems and shortens each: it never holds a whole answer.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        shown, hidden = problems[:5], len(problems[5:])
        more = [f"and {hidden} more"] if hidden else []
        listed = "; ".join([*(problem[:200] for problem in shown), *more])
        super().__init__(f"The answer does not fit `output`: {listed}")


class SourceNotFoundError(ClaudeBatchError):
    """The table or query to read does not exist or does not run."""

    def __init__(self, asset: str, source: str, problem: str) -> None:
        super().__init__(
            f"The source {source} of asset {asset!r} cannot be read: {problem} Nothing was "
            "submitted. Materialize the upstream asset first, or correct `source` or `query`."
        )


class SourceFailedError(ClaudeBatchError):
    """The source was found, but its rows could not be read.

    ``problem`` holds no value of the data and no text of the query.
    """

    def __init__(self, asset: str, problem: str) -> None:
        super().__init__(
            f"Reading the rows of the source of asset {asset!r} failed: {problem} What was to be "
            f"planned or sent now was not. {_NOTHING_IS_LOST} Run the query, or select from the "
            "table, in DuckDB to see the value; correct it, or let `query` and `partition_expr` "
            "tolerate it (TRY_CAST in place of CAST, TRY(…) round a function); then materialize "
            "again."
        )


class UnstableSourceError(ClaudeBatchError):
    """The source gives something else each time it is read, so that no plan of it can be sent."""

    def __init__(self, asset: str) -> None:
        super().__init__(
            f"The source of asset {asset!r} gives other rows or texts each time it is read: it "
            "takes a sample, calls random() or now(), or is written to all the time. What was "
            f"planned of it was not sent, for it is not there any more. {_NOTHING_IS_LOST} "
            "Materialize the source as a table first, name that as `source`, and materialize "
            "again."
        )


class MissingColumnError(ClaudeBatchError):
    """An argument names a column that the source does not have."""

    def __init__(self, asset: str, argument: str, column: str, columns: list[str]) -> None:
        super().__init__(
            f"Asset {asset!r}, argument `{argument}`: the source has no column {column!r}. "
            f"It has {', '.join(columns)}. Nothing was submitted."
        )


class ColumnCollisionError(ClaudeBatchError):
    """Two columns of the answers table would have one name."""

    def __init__(self, asset: str, column: str, *, other: str) -> None:
        super().__init__(
            f"Asset {asset!r}: column {column!r} would stand beside {other} in the answers table, "
            "under the same name (DuckDB does not distinguish case). Nothing was submitted. Rename "
            "one of them, in `output` or by a `query` that selects it under another name."
        )


class ColumnTypeChangedError(ClaudeBatchError):
    """A column exists with another type than the declaration now gives it."""

    def __init__(self, table: str, column: str, *, is_type: str, should_be: str) -> None:
        super().__init__(
            f"Column {column!r} of {table} has the type {is_type}, but is now declared as "
            f"{should_be}. Nothing was submitted, and what is out can still be collected. Alter "
            "the column yourself if its values can be converted, give the field a new name, or "
            "move the table away to begin anew."
        )


class TableTakenError(ClaudeBatchError):
    """Two assets would write one table, and each drop the answers of the other."""

    def __init__(self, asset: str, table: str, *, owner: str) -> None:
        quoted = owner.replace("'", "''")
        super().__init__(
            f"Asset {asset!r} would write the table {table} of asset {owner!r}: each would put "
            "the answers of the other aside and ask anew. Nothing was submitted. Give one of them "
            f"another `table`. If {owner!r} is not there any more, because it was renamed, let go "
            "of its table: UPDATE claude_batch.assets SET tables = NULL "
            f"WHERE asset = '{quoted}'"
        )


class NullRowKeyError(ClaudeBatchError):
    """Rows without an identity."""

    def __init__(self, asset: str, columns: tuple[str, ...], count: int, examples: str) -> None:
        super().__init__(
            f"Asset {asset!r}: {count:,} rows have NULL in `row_key` ({', '.join(columns)}), "
            f"such as {examples}. Nothing was submitted. Leave them out of the source with a "
            "`query`, or choose other key columns."
        )


class DuplicateRowKeyError(ClaudeBatchError):
    """Several rows of one partition with the same key."""

    def __init__(self, asset: str, columns: tuple[str, ...], count: int, examples: str) -> None:
        super().__init__(
            f"Asset {asset!r}: {count:,} values of `row_key` ({', '.join(columns)}) stand in more "
            f"than one row of their partition, such as {examples}. Nothing was submitted. Add "
            "the column that tells these rows apart to `row_key`, or remove the duplicates."
        )


class OversizedRequestError(ClaudeBatchError):
    """One row builds a request too large for any batch."""

    def __init__(self, position: int, *, size: int, limit: int, row_key: str = "") -> None:
        self.position = position
        self.size = size
        self.limit = limit
        super().__init__(
            f"The request for row {row_key or position} is {size:,} bytes, and one request may "
            f"have {limit:,} at most. Nothing was submitted for these partitions. Shorten what "
            "`prompt` builds for that row, or leave the row out of the source."
        )


class LedgerVersionError(ClaudeBatchError):
    """The ledger was written by a newer version of this package."""

    def __init__(self, found: int, *, known: int) -> None:
        super().__init__(
            f"The ledger in schema `claude_batch` has version {found}, and this version of "
            f"dagster-claude-batch knows up to {known}. Nothing was read or changed. Upgrade "
            "dagster-claude-batch where this code runs."
        )


class LostChunkError(ClaudeBatchError):
    """A chunk was not in the state in which it had been left."""

    def __init__(self, chunk_id: int, *, expected: str) -> None:
        super().__init__(
            f"Chunk {chunk_id} is no longer {expected!r}: another run works on it. This run "
            "changed nothing; it will find the chunk's new state when it looks again."
        )


class DatabaseLockedError(ClaudeBatchError):
    """Another process held the DuckDB file for too long."""

    def __init__(self, holder: str, *, waited: float, database: str) -> None:
        super().__init__(
            f"The DuckDB database {database} was locked by {holder} for {waited:.0f} s. What was "
            f"to be read or written now was not. {_NOTHING_IS_LOST} DuckDB lets only one process "
            "at a time open a file for writing: close that one, or wait longer with "
            "`lock_timeout_seconds` of the Claude resource; then materialize again."
        )


NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of the OSErrors that mean `NoTemporarySpaceError`."""


class NoTemporarySpaceError(ClaudeBatchError):
    """The disk has no room for what is sent or has been downloaded."""

    def __init__(self, asset: str, directory: str) -> None:
        super().__init__(
            f"Asset {asset!r}: no room is left in the temporary directory {directory}. What could "
            "not be written was not sent, or can be downloaded again: nothing is lost. Make room "
            "there, or let TMPDIR name another directory, then materialize again."
        )


class TemporaryFileError(ClaudeBatchError):
    """A temporary file does not hold what was written to it."""

    def __init__(self, asset: str, directory: str, answers: int) -> None:
        super().__init__(
            f"Asset {asset!r}: {answers:,} answers that were downloaded could not be read back "
            f"from the temporary directory {directory}. Their batches were not landed, and nothing "
            "is lost. See to that disk, or let TMPDIR name another directory, then materialize "
            "again: they are downloaded anew."
        )


class ModelUnavailableError(ClaudeBatchError):
    """The declared model cannot serve this asset."""

    def __init__(self, asset: str, model: str, problem: str) -> None:
        super().__init__(
            f"Asset {asset!r}: model {model!r} {problem} Nothing was submitted. Change `model`."
        )


class ClockError(ClaudeBatchError):
    """The clock of this machine and that of the API disagree."""

    def __init__(self, asset: str, ahead: timedelta) -> None:
        minutes = abs(ahead).total_seconds() / 60
        which = "ahead of" if ahead > timedelta() else "behind"
        super().__init__(
            f"Asset {asset!r}: the clock of this machine is {minutes:,.0f} minutes {which} the "
            "API's. Batches are told apart by when they were created, so one might be paid for "
            "twice. Nothing was submitted. Set the clock, best by NTP, and materialize again."
        )


class SubmissionRefusedError(ClaudeBatchError):
    """The API refused a batch, and would refuse it again."""

    def __init__(self, asset: str, chunk_id: int, requests: int, reason: str) -> None:
        super().__init__(
            f"The API refused the batch for chunk {chunk_id} of asset {asset!r} ({requests:,} "
            f"requests): {reason} This batch was not created and costs nothing; batches sent "
            "earlier are collected by the next materialization. Correct the cause and materialize "
            "again."
        )


class RequestRefusedError(ClaudeBatchError):
    """The API would refuse a request, and all others like it, hours after they were sent."""

    def __init__(self, asset: str, reason: str) -> None:
        super().__init__(
            f"The API would refuse the requests of asset {asset!r}: {reason} Nothing was sent. "
            "Correct `prompt`, `system` or `params`."
        )


class RequestsFileError(ClaudeBatchError):
    """The file for the requests of a dry run cannot be made."""

    def __init__(self, asset: str, path: str, problem: str) -> None:
        super().__init__(
            f"The requests of asset {asset!r} cannot be written to {path!r} ({problem}). Nothing "
            "was sent or changed. `requests_path` has to name a file that does not exist yet, in a "
            "directory that does."
        )


class PilotFailedError(ClaudeBatchError):
    """The rows that were sent first did not come back as they should: the rest was not sent."""

    def __init__(self, asset: str, said: str, *, failures: str, tolerated: float) -> None:
        super().__init__(
            f"Asset {asset!r}: of the pilot, {said}. Tolerated are {tolerated:.2%} "
            f"(`max_failure_rate`). The failed rows stand in {failures} with their reasons. "
            "Correct `prompt` or `output`, and materialize again: that begins with another pilot."
        )


class AccountHaltedError(ClaudeBatchError):
    """The account, not a request, is at fault: no credit, a spend limit, a key without access."""

    def __init__(self, asset: str, reason: str, *, unsent: int) -> None:
        super().__init__(
            f"Sending for asset {asset!r} stopped because of the account: {reason} {unsent:,} rows "
            "were not sent and no attempt was counted; what had been sent has been collected. Put "
            "the account in order (credit, spend limit, API key), then materialize again."
        )


class CredentialsRefusedError(ClaudeBatchError):
    """The API does not answer these credentials when asked about batches that are out."""

    def __init__(self, asset: str, reason: str) -> None:
        super().__init__(
            f"The API refused a question about the batches of asset {asset!r}: {reason} Nothing "
            "was sent or cancelled, and nothing is lost: results can be collected for 29 days. "
            "Put the credentials in order, then materialize again."
        )


class ResultsUnavailableError(ClaudeBatchError):
    """The results of a batch that has ended could not be downloaded whole.

    ``is_gone``: the API itself says that they have been archived, so that waiting is no use.
    """

    def __init__(self, batch_id: str, reason: str, *, is_gone: bool = False) -> None:
        self.batch_id = batch_id
        self.reason = reason
        self.is_gone = is_gone
        super().__init__(
            f"The results of batch {one_line(batch_id)} could not be downloaded: {reason} Nothing "
            "of this batch was written, and nothing is lost: results can be collected for 29 days. "
            "Materialize again to collect them."
        )


class UnreadableAnswerError(ClaudeBatchError):
    """The API, or what stands between, answered with something that is no answer."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"What the API answered cannot be read ({problem}). Nothing was concluded from it, and "
            "nothing is lost. If it happens again, look at what stands between (`base_url`, a "
            "proxy), and whether `anthropic` is recent."
        )


class NoCredentialsError(ClaudeBatchError):
    """Anthropic's SDK has found no credentials anywhere."""

    def __init__(self) -> None:
        super().__init__(
            "No credentials for the Anthropic API were found, and nothing was asked or sent. Set "
            "ANTHROPIC_API_KEY where the runs are executed, or give `api_key` to the "
            "`ClaudeBatchResource`; without an account, use `LocalClaudeBatchResource`."
        )


class NoSensorError(ClaudeBatchError):
    """Nobody would collect the results."""

    def __init__(self, asset: str, problem: str) -> None:
        super().__init__(
            f"Asset {asset!r} waits for its batches by way of a sensor, but {problem} Nothing was "
            "submitted. Add `claude_batch_sensor` to the `sensors` of your `Definitions` and "
            'switch it on under Automation, or let the run itself wait with `wait="run"`.'
        )


class TrialInBackfillError(ClaudeBatchError):
    """A run that will not materialize its partitions belongs to a backfill that waits for them."""

    def __init__(self, asset: str, argument: str) -> None:
        super().__init__(
            f"Asset {asset!r} was asked for with {argument!r} in a backfill, which would wait for "
            "partitions that such a run never materializes. Nothing was sent. Launch a single run "
            f"for them from the launchpad, or leave {argument!r} out."
        )


class MaterializationCancelledError(ClaudeBatchError):
    """What a run worked on was cancelled by somebody else."""

    def __init__(self, asset: str) -> None:
        super().__init__(
            f"The materialization of asset {asset!r} that this run worked on has been cancelled: "
            "nothing more is sent on its behalf, and what was answered by then is in the tables. "
            "Materialize the partitions again to ask the other rows."
        )


class MaterializationDoneError(ClaudeBatchError):
    """An automatic retry of a run whose materializations have come to their end."""

    def __init__(
        self, asset: str, parent_run_id: str, materializations: "Sequence[Materialization]"
    ) -> None:
        self.parent_run_id = parent_run_id
        self.materializations = materializations
        super().__init__(
            f"This run is an automatic retry of run {parent_run_id}, whose materialization of "
            f"asset {asset!r} is done: retrying by itself would only pay again, so nothing was "
            "sent. Read why that run failed, then materialize the partition again."
        )


class DatabaseFailedError(ClaudeBatchError):
    """The database could not be opened, read or written, for another reason than a lock."""

    def __init__(self, database: str, problem: str) -> None:
        super().__init__(
            f"DuckDB failed while working on the database {database}: {problem} What was to be "
            f"read or written now was not. {_NOTHING_IS_LOST} See that the database is in its "
            "place, can be read and written, and has room on its disk; then materialize again."
        )


class StatusUnreadableError(ClaudeBatchError):
    """What is out cannot be told now."""

    def __init__(self, database: str, problem: str, *, cure: str) -> None:
        super().__init__(
            f"What is out cannot be read from the DuckDB database {database}: {problem} "
            f"Nothing was changed. {cure}"
        )


class StatusLockedError(ClaudeBatchError):
    """What is out cannot be told, for another process writes the database all the time."""

    def __init__(self, database: str, holder: str, *, waited: float) -> None:
        super().__init__(
            f"The DuckDB database {database} was locked by {holder} for {waited:.0f} s. Nothing "
            "was changed. Runs open it for single transactions: try again, or wait longer with "
            "`--wait`."
        )


class UnknownAssetsError(ClaudeBatchError):
    """A job was to work on assets that are not there."""

    def __init__(
        self, job: str, unknown: Sequence[str], claude_resource: str, known: Sequence[str]
    ) -> None:
        there = ", ".join(map(repr, known)) or "none"
        super().__init__(
            f"{job} did nothing: this code location has no batch asset "
            f"{', '.join(map(repr, unknown))} that uses the resource {claude_resource!r}. It has: "
            f"{there}. Name `assets` as these are written."
        )


class UnknownPartitionsError(ClaudeBatchError):
    """A job was to cancel partitions that were never asked for."""

    def __init__(self, job: str, unknown: Sequence[str], still_open: Sequence[str]) -> None:
        shown = ", ".join(map(repr, still_open[:_SHOWN])) or "none"
        more = f" and {len(still_open) - _SHOWN:,} more" if len(still_open) > _SHOWN else ""
        super().__init__(
            f"{job} did nothing: none of these assets was ever asked for the partitions "
            f"{', '.join(map(repr, unknown))}. Open are: {shown}{more}. Name `partitions` as "
            "these are written."
        )


_SHOWN: Final = 20


class BatchesNotCancelledError(ClaudeBatchError):
    """Batches whose answers nobody waits for go on, for the API could not be asked to end them."""

    def __init__(self, asset: str, failed: Mapping[str, str]) -> None:
        (batch_id, reason), *_ = failed.items()
        batches = "1 batch" if len(failed) == 1 else f"{len(failed):,} batches"
        super().__init__(
            f"{batches} of asset {asset!r} could not be asked to end ({batch_id}: {reason}). "
            "Nothing more is sent for what was cancelled, but what these batches go on to answer "
            "is billed; it lands as usual. Start the job again."
        )


class BatchesNotDeletedError(ClaudeBatchError):
    """Batches that have landed are still at Anthropic."""

    def __init__(self, asset: str, left: int, reason: str) -> None:
        batches = "1 landed batch" if left == 1 else f"{left:,} landed batches"
        super().__init__(
            f"{batches} of asset {asset!r} could not be deleted at Anthropic: "
            f"{reason.rstrip('.')}. What was asked and answered in them can be read there for 29 "
            "days from their creation. Start the job again; what the API does not show was deleted "
            "already, or belongs to another workspace than the credentials."
        )


class LedgerLostError(ClaudeBatchError):
    """The ledger that this run had begun, or was made for, is not where it was."""

    def __init__(self, database: str, problem: str) -> None:
        super().__init__(
            f"The ledger of this run is not in the DuckDB database {database}: {problem} Nothing "
            "was created, planned, sent or collected, for what is out would be paid for twice. "
            "Put the database back with all that stood beside it (`.wal`), then materialize "
            "again: what was sent is found and collected, up to 29 days after its sending. If "
            "the database is gone for good, materializing again asks and pays for everything anew."
        )


class LedgerOverwrittenError(ClaudeBatchError):
    """What the ledger had noted of a batch before it was sent is not there any more."""

    def __init__(self, asset: str, database: str, batch_id: str, requests: int) -> None:
        super().__init__(
            f"The ledger of {asset!r} does not know the chunk of {requests:,} requests that has "
            f"just been sent as batch {batch_id}: another program has written the DuckDB database "
            f"{database} over what was committed meanwhile. The batch was asked to end; what it "
            "has answered by then is billed, and cannot be collected. Nothing else was sent. Keep "
            "other programs from writing the file at the same time, then materialize again: its "
            "rows are asked anew."
        )


class UncappableError(ClaudeBatchError):
    """A cap was given that nobody could keep."""

    def __init__(self, asset: str, cap: str, problem: str) -> None:
        super().__init__(
            f"{asset!r} cannot be kept under `{cap}`: {problem}. Nothing more was sent. Without "
            f"`{cap}`, it is sent whatever it costs."
        )
