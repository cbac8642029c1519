"""Where the user has a tracer, the SDK's spans are there, and no prompt is in them."""

import json
import subprocess
import sys
from pathlib import Path

# In a process of its own: the tracer of a process can be set once.
TRACED = """
import json, sys, tempfile
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from dagster_claude_batch import LocalClaudeBatchResource

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
claude = LocalClaudeBatchResource(path=sys.argv[1], processing_seconds=[0, 0])
message = {"role": "user", "content": "words that nobody should see"}
params = {"model": "claude-haiku-5-5", "max_tokens": 10, "messages": [message]}
with provider.get_tracer("nightly").start_as_current_span("run"):
    batch = claude.create([{"custom_id": "a", "params": params}])
    batch = claude.retrieve(batch.id)
    list(claude.list())
    with tempfile.TemporaryFile() as file:
        claude.download(batch, file)
    claude.delete(batch.id)
spans = exporter.get_finished_spans()
shown = [(each.name, each.parent is not None, dict(each.attributes)) for each in spans]
print(json.dumps([batch.id, shown], default=str))
"""


def test_each_call_of_the_api_is_a_span_of_the_sdk_within_the_users_own(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRACED, str(tmp_path / "simulator")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr

    batch_id, spans = json.loads(ended.stdout)
    *calls, own = spans
    assert own == ["run", False, {}]
    assert [name.removeprefix("anthropic.messages.batches.") for name, *_ in calls] == [
        "create",
        "retrieve",
        "list",
        "retrieve",  # the SDK looks where the results are
        "results",
        "delete",
    ]
    assert all(has_parent for _, has_parent, _ in calls)
    (created, *_) = calls
    assert created[2]["anthropic.message.batch.id"] == batch_id
    assert created[2]["http.route"] == "/v1/messages/batches"
    assert "nobody should see" not in ended.stdout
