"""What a ledger knows to be out: since when, and what it may cost."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from dagster_claude_batch.errors import LedgerVersionError
from dagster_claude_batch.ledger import VERSION
from dagster_claude_batch.warehouse import Connection, rows

IN_DOUBT: Final = "in doubt"
"""A chunk whose batch nobody knows yet, for the answer to its creation was lost."""


@dataclass(frozen=True)
class Out:
    """A batch, or chunks of a materialization that are still to be sent.

    ``state`` is ``submitted``, ``in doubt`` or ``planned``; ``since`` when it was sent or planned,
    aware; ``most_usd`` the most that it may cost, None if nobody knows. ``chunks`` are more than
    one only of what is planned.
    """

    asset: str
    partitions: tuple[str | None, ...]
    materialization_state: str
    state: str
    batch_id: str | None
    chunks: int
    requests: int
    since: datetime
    most_usd: Decimal | None

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's types; the cost is a string, for it is exact."""
        return {
            **asdict(self),
            "partitions": list(self.partitions),
            "since": self.since.isoformat(),
            "most_usd": None if self.most_usd is None else str(self.most_usd),
        }


_OUT: Final = """
    SELECT c.asset, m.partitions, m.state, CASE c.state WHEN 'sending' THEN $in_doubt
            WHEN 'held_back' THEN 'planned' ELSE c.state END AS shown,
        c.batch_id, count(*), sum(c.requests)::BIGINT,
        min(coalesce(c.submitted_at, c.sending_at, c.planned_at)),
        CASE WHEN count(c.most_usd) = count(*) THEN sum(c.most_usd) END
    FROM claude_batch.chunks AS c
    JOIN claude_batch.materializations AS m ON m.materialization_id = c.materialization_id
    WHERE c.state IN ('planned', 'held_back', 'sending', 'submitted')
    GROUP BY c.asset, m.materialization_id, m.partitions, m.state, shown, c.batch_id,
        CASE WHEN c.state = 'sending' THEN c.chunk_id END
    ORDER BY c.asset, m.materialization_id, bool_and(c.sending_at IS NULL), min(c.chunk_id)
"""


def ledger_version(connection: Connection) -> int | None:
    """The version of the ledger that a database has; None if it has none."""
    if not rows(connection, _HAS_LEDGER):
        return None
    found = rows(connection, "SELECT version FROM claude_batch.ledger")
    return int(found[0][0]) if found else None


def read_status(connection: Connection) -> list[Out]:
    """What is out or planned, by asset and materialization; without a ledger, nothing.

    Raises:
        LedgerVersionError: The ledger is newer than this code.
    """
    version = ledger_version(connection)
    if version is None:
        return []
    if version > VERSION:
        raise LedgerVersionError(version, known=VERSION)
    found = rows(connection, _OUT, {"in_doubt": IN_DOUBT})
    return [Out(asset, tuple(partitions), *rest) for asset, partitions, *rest in found]


_HAS_LEDGER: Final = """
    SELECT 1 FROM information_schema.tables
    WHERE table_schema = 'claude_batch' AND table_name = 'ledger'
        AND table_catalog = current_database()
"""


def table_of(status: Sequence[Out], now: datetime) -> Iterator[str]:
    """The same as lines for people, with a sum at the end."""
    if not status:
        yield "Nothing is out, and nothing is planned."
        return
    columns = [("asset", "partitions", "state", "batch", "requests", "since", "at most, USD")]
    columns += [_cells(each, now) for each in status]
    widths = [max(len(row[column]) for row in columns) for column in range(len(columns[0]))]
    for row in columns:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    sent = [each for each in status if each.state != "planned"]
    most = [each.most_usd for each in sent]
    known = sum((usd for usd in most if usd is not None), Decimal(0))
    more = "" if None not in most else ", and more whose price is not known"
    requests = sum(each.requests for each in sent)
    yield f"{requests:,} requests are out, for {known:.6f} USD at most{more}."


_SHOWN: Final = 3


def _cells(out: Out, now: datetime) -> tuple[str, ...]:
    keys = [key for key in out.partitions if key is not None]
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    ended = out.materialization_state != "open"
    state = f"{out.state} ({out.materialization_state})" if ended else out.state
    return (
        out.asset,
        ", ".join(keys[:_SHOWN]) + more,
        state,
        out.batch_id or (f"{out.chunks:,} to be sent" if out.state == "planned" else "?"),
        f"{out.requests:,}",
        _ago(now, out.since),
        "" if out.state == "planned" else _usd(out.most_usd),
    )


def _usd(usd: Decimal | None) -> str:
    return "?" if usd is None else f"{usd:.6f}"


def _ago(now: datetime, since: datetime) -> str:
    minutes = max(0, int((now - since).total_seconds()) // 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min ago" if hours else f"{minutes} min ago"
