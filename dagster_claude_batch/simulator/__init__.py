"""Anthropic's Message Batches API, simulated: no key, no cost, no network.

A :class:`Simulator` is the API's behaviour over a directory; :class:`SimulatorTransport` puts
it under the SDK inside the process, and ``python -m dagster_claude_batch.simulator`` on a port
of this machine. It is faithful where a client could be wrong about the API: what is refused
at once and what only in the results, statuses and counts, order and absence of results,
expiry, cancelling, paging, usage. It is not a model: answers come from a function, or just
fit the schema. Faults of the network are not simulated; wrap the transport for those.
"""

from dagster_claude_batch.simulator.answers import Answer, Reply
from dagster_claude_batch.simulator.batch import Batch, ProcessingStatus, RequestCounts
from dagster_claude_batch.simulator.errors import (
    ApiError,
    FunctionNotFoundError,
    SimulatorSetupError,
)
from dagster_claude_batch.simulator.files import BilledRequest
from dagster_claude_batch.simulator.outcomes import Outcome, OutcomeName
from dagster_claude_batch.simulator.server import SimulatorServer
from dagster_claude_batch.simulator.simulator import Page, Simulator
from dagster_claude_batch.simulator.transport import SimulatorTransport

__all__ = [
    "Answer",
    "ApiError",
    "Batch",
    "BilledRequest",
    "FunctionNotFoundError",
    "Outcome",
    "OutcomeName",
    "Page",
    "ProcessingStatus",
    "Reply",
    "RequestCounts",
    "Simulator",
    "SimulatorServer",
    "SimulatorSetupError",
    "SimulatorTransport",
]
