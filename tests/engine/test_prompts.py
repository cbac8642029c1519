"""Everything that a row can be asked: rendered inside DuckDB, and valid by the SDK's own types."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from anthropic.types.messages.batch_create_params import Request
from kit import Project
from PIL import Image as Picture
from pydantic import TypeAdapter

from dagster_claude_batch import Document, Image, Text
from dagster_claude_batch.report import read_reports
from dagster_claude_batch.simulator import Reply

Make = Callable[..., Project]

PDF: Final = b"%PDF-1.7\n%nothing of interest\n%%EOF\n"


def _picture(kind: str, size: tuple[int, int] = (4, 3)) -> bytes:
    written = io.BytesIO()
    Picture.new("RGB", size, "teal").save(written, format=kind)
    return written.getvalue()


PICTURES: Final = {kind: _picture(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP")}


def _requests(project: Project) -> list[dict[str, Any]]:
    """The params of all requests, each checked by the SDK's types, in the order of sending."""
    found: list[dict[str, Any]] = []
    for batch in project.claude.simulator.batches():
        for custom_id, params in project.claude.simulator.requests(batch.id):
            _walk(CHECKS.validate_python({"custom_id": custom_id, "params": params}))
            found.append(params)
    return found


CHECKS: Final = TypeAdapter(Request)


def _walk(value: object) -> None:
    """The SDK's ``Iterable`` fields are checked when they are read."""
    if isinstance(value, Mapping):
        for each in value.values():
            _walk(each)
    elif hasattr(value, "__iter__") and not isinstance(value, str | bytes):
        for each in value:
            _walk(each)


def _content(project: Project) -> list[Any]:
    """What the last message of each request holds."""
    return [params["messages"][-1]["content"] for params in _requests(project)]


def _with_column(made: Project, kind: str, values: list[object]) -> Project:
    """A source with a column ``it``, one value a row."""
    made.sql(f"CREATE TABLE texts (corpus VARCHAR, id VARCHAR, text VARCHAR, it {kind})")
    for number, value in enumerate(values):
        made.sql(
            "INSERT INTO texts VALUES ('tweets', $id, $text, $it)",
            id=f"t{number}",
            text=f"Text {number}",
            it=value,
        )
    return made


# --- parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_a_blob_column_is_told_by_its_first_bytes(project: Make, kind: str) -> None:
    made = project(prompt=[Image("it"), Text("What is in {{ id }}?")])
    _with_column(made, "BLOB", [PICTURES[kind]])

    made.materialize()

    ((image, text),) = _content(made)
    assert image["source"] == {
        "type": "base64",
        "media_type": f"image/{kind.lower()}",
        "data": base64.b64encode(PICTURES[kind]).decode(),
    }
    assert text == {"type": "text", "text": "What is in t0?"}
    assert made.answers() == ["t0"]


def test_parts_stand_in_their_order_and_bare_text_is_a_part(project: Make) -> None:
    made = project(prompt=["First:", Image("it"), "then:", Image("it"), Text("compare {{ id }}")])
    _with_column(made, "BLOB", [PICTURES["PNG"]])

    made.materialize()

    (content,) = _content(made)
    assert [block["type"] for block in content] == ["text", "image", "text", "image", "text"]
    assert [b["text"] for b in content if b["type"] == "text"] == ["First:", "then:", "compare t0"]


def test_a_picture_may_be_a_url_or_the_path_of_a_file(project: Make, tmp_path: Path) -> None:
    path = tmp_path / "it.gif"
    path.write_bytes(PICTURES["GIF"])
    made = project(prompt=[Image("it"), "What is it?"])
    _with_column(made, "VARCHAR", ["https://example.org/it.png", str(path)])

    made.materialize()

    sources = {json.dumps(content[0]["source"]) for content in _content(made)}
    assert sources == {
        json.dumps({"type": "url", "url": "https://example.org/it.png"}),
        json.dumps(
            {
                "type": "base64",
                "media_type": "image/gif",
                "data": base64.b64encode(PICTURES["GIF"]).decode(),
            }
        ),
    }
    assert made.failures() == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"no picture", "holds no PNG, JPEG, GIF or WebP picture"),
        (b"", "holds no PNG, JPEG, GIF or WebP picture"),
        (None, "Column 'it', which the prompt needs, is NULL"),
        (PICTURES["PNG"] + bytes(4_000_000), "is too large: more than 3,932,160 bytes"),
    ],
    ids=["something else", "nothing", "NULL", "too large"],
)
def test_a_row_whose_picture_the_api_would_refuse_is_not_asked(
    project: Make, value: bytes | None, problem: str
) -> None:
    made = project(prompt=[Image("it"), "What is it?"])
    _with_column(made, "BLOB", [value, PICTURES["PNG"]])

    made.materialize()

    ((failed, kind, message),) = made.failures("id, _error_type, _error_message")
    assert (failed, kind) == ("t0", "invalid_row")
    assert problem in message
    assert made.answers() == ["t1"]


@pytest.mark.parametrize(
    "named", ["there/is/none", "/etc/hostname", "\0", "https:/example.org"], ids=repr
)
def test_a_path_that_names_no_picture_fails_its_row_and_reveals_nothing(
    project: Make, named: str
) -> None:
    made = project(prompt=[Image("it"), "What is it?"])
    _with_column(made, "VARCHAR", [named])

    made.materialize()

    assert made.failures() == [("t0", "invalid_row")]
    assert _requests(made) == []


def test_a_large_picture_is_scaled_down_before_it_is_sent(project: Make) -> None:
    large, small = _picture("PNG", (400, 200)), _picture("PNG", (100, 50))
    made = project(prompt=[Image("it", resize=200), "What is it?"])
    _with_column(made, "BLOB", [large, small])

    made.materialize()

    sent = [base64.b64decode(content[0]["source"]["data"]) for content in _content(made)]
    sizes = {Picture.open(io.BytesIO(each)).size for each in sent}
    assert sizes == {(200, 100), (100, 50)}
    assert small in sent


def test_a_picture_that_is_too_large_as_it_is_becomes_small_enough(project: Make) -> None:
    noise = Picture.effect_noise((1_800, 1_800), 200).convert("RGB")
    written = io.BytesIO()
    noise.save(written, format="PNG")
    made = project(prompt=[Image("it", resize=True), "What is it?"])
    _with_column(made, "BLOB", [written.getvalue()])

    made.materialize()

    ((block, _),) = _content(made)
    assert len(written.getvalue()) > 3_932_160 > len(base64.b64decode(block["source"]["data"]))
    assert block["source"]["media_type"] == "image/jpeg"


def test_a_picture_that_lies_on_its_side_is_turned_upright(project: Make) -> None:
    written = io.BytesIO()
    lying = Picture.new("RGB", (400, 200), "teal")
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(written, format="JPEG", exif=exif)
    made = project(prompt=[Image("it", resize=100), "What is it?"])
    _with_column(made, "BLOB", [written.getvalue()])

    made.materialize()

    ((block, _),) = _content(made)
    sent = Picture.open(io.BytesIO(base64.b64decode(block["source"]["data"])))
    assert sent.size == (50, 100)


def test_a_damaged_picture_keeps_no_other_row_from_being_asked(project: Make) -> None:
    damaged = bytearray(_picture("PNG", (400, 300)))
    damaged[37:41] = b"\0\0\0\0"  # Pillow raises a SyntaxError of this
    made = project(prompt=[Image("it", resize=100), "What is it?"])
    _with_column(made, "BLOB", [bytes(damaged), PICTURES["PNG"]])

    made.materialize()

    assert made.answers() == ["t0", "t1"]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (Image("it", resize=True), _picture("PNG") + bytes(25_000_000)),
        (Document("it"), PDF + bytes(25_000_000)),
    ],
    ids=["picture", "PDF"],
)
def test_what_is_larger_than_a_request_costs_no_other_row_anything(
    project: Make, part: Image | Document, value: bytes
) -> None:
    made = project(prompt=[part, "What is it?"])
    _with_column(made, "BLOB", [value, PICTURES["PNG"] if isinstance(part, Image) else PDF])

    made.materialize()

    assert "t1" in made.answers()


@pytest.mark.parametrize("prompt", ["function", "picture by path"])
def test_rows_that_leave_before_they_are_sent_and_rows_that_come_are_seen(
    project: Make, tmp_path: Path, prompt: str
) -> None:
    (tmp_path / "it.png").write_bytes(PICTURES["PNG"])
    parts = [Image("it"), "Describe {{ id }} please"]
    made = project(
        prompt=parts if prompt == "picture by path" else lambda row: f"Describe {row['id']} please",
        chunk_size=1,
        claude={"max_in_flight_requests": 1},
    )
    _with_column(made, "VARCHAR", [str(tmp_path / "it.png")] * 3)
    run = made.start()
    for (key,) in made.sql("SELECT id FROM texts WHERE id <> $sent", sent=made.sent().rows[0]):
        made.sql("DELETE FROM texts WHERE id = $id", id=key)
    made.end_batches()

    assert run.advance() is None
    made.sql("INSERT INTO texts SELECT corpus, 'new', text, it FROM texts")
    (report,) = read_reports(
        run.engine.warehouse,
        made.asset.declaration,
        run.materializations,
        ["tweets"],
        run.engine.slices_of,
    )
    assert len(made.answers()) == 1
    assert report.come_since == 1


def test_a_picture_that_changes_is_asked_again_and_one_that_moves_is_not(
    project: Make, tmp_path: Path
) -> None:
    made = project(prompt=[Image("it"), "What is it?"])
    for name, kind in (("a", "PNG"), ("b", "GIF")):
        (tmp_path / name).write_bytes(PICTURES[kind])
    _with_column(made, "VARCHAR", [str(tmp_path / "a"), str(tmp_path / "b")])
    made.materialize()

    (tmp_path / "a").rename(tmp_path / "elsewhere")
    made.sql("UPDATE texts SET it = $to WHERE id = 't0'", to=str(tmp_path / "elsewhere"))
    (tmp_path / "b").write_bytes(PICTURES["JPEG"])
    again = made.materialize()

    assert len(again.batches) == 1
    assert len(again.batches[0]) == 1
    assert _content(made)[-1][0]["source"]["media_type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("document", "kind", "value", "source"),
    [
        (
            Document("it"),
            "BLOB",
            PDF,
            {
                "type": "base64",
                "media_type": "application/pdf",
                "data": base64.b64encode(PDF).decode(),
            },
        ),
        (
            Document("it"),
            "VARCHAR",
            'A "text"',
            {"type": "text", "media_type": "text/plain", "data": 'A "text"'},
        ),
        (
            Document("it", media_type="text/plain"),
            "BLOB",
            "Grüße".encode(),
            {"type": "text", "media_type": "text/plain", "data": "Grüße"},
        ),
        (
            Document("it", media_type="application/pdf"),
            "VARCHAR",
            "https://example.org/it.pdf",
            {"type": "url", "url": "https://example.org/it.pdf"},
        ),
    ],
    ids=["PDF", "text", "text in bytes", "URL of a PDF"],
)
def test_a_document_is_a_pdf_or_text(
    project: Make, document: Document, kind: str, value: object, source: dict[str, Any]
) -> None:
    made = project(prompt=[document, "What does it say?"])
    _with_column(made, kind, [value])

    made.materialize()

    ((block, _),) = _content(made)
    assert block == {"type": "document", "source": source}
    assert made.answers() == ["t0"]


@pytest.mark.parametrize(
    ("document", "kind", "value", "problem"),
    [
        (Document("it"), "BLOB", b"no PDF", "holds no PDF"),
        (Document("it"), "VARCHAR", " ", "is empty"),
        (Document("it", media_type="text/plain"), "BLOB", b"\xff\xfe", "no text in UTF-8"),
        (Document("it", media_type="application/pdf"), "VARCHAR", "/none", "cannot be read"),
    ],
    ids=["no PDF", "empty", "no UTF-8", "no file"],
)
def test_a_row_whose_document_the_api_would_refuse_is_not_asked(
    project: Make, document: Document, kind: str, value: object, problem: str
) -> None:
    made = project(prompt=[document, "What does it say?"])
    _with_column(made, kind, [value])

    made.materialize()

    ((failed, message),) = made.failures("id, _error_message")
    assert failed == "t0"
    assert problem in message


def test_a_document_may_have_a_title_a_context_and_citations(project: Make) -> None:
    document = Document("it", title="No. {{ id }}", context="From the archive", citations=True)
    made = project(prompt=[document, "What does it say?"], output=None)
    _with_column(made, "VARCHAR", ["Something"])

    made.materialize()

    ((block, _),) = _content(made)
    assert (block["title"], block["context"]) == ("No. t0", "From the archive")
    assert block["citations"] == {"enabled": True}


CITED = {
    "type": "char_location",
    "cited_text": "Something \u2028 else",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 9,
}


@pytest.mark.parametrize("spoilt", [False, True], ids=["sound", "with a broken line"])
def test_what_an_answer_cites_stands_beside_it(project: Make, *, spoilt: bool) -> None:
    made = project(prompt=[Document("it", citations=True), "What does it say?"], output=None)
    _with_column(made, "VARCHAR", ["Something \u2028 else", "Nothing"])
    said = [
        {"type": "text", "text": "It says "},
        {"type": "text", "text": "something", "citations": [CITED, CITED]},
        {"type": "text", "text": ".", "citations": None},
    ]
    replies = iter([Reply(said), "Nothing."])
    made.script.answer = lambda _: next(replies)
    run = made.start()
    made.end_batches()
    if spoilt:
        (batch,) = made.claude.simulator.batches()
        results = f"GET /v1/messages/batches/{batch.id}/results"
        made.wire.change_answer(results, lambda body: b"[1]\n" + body)

    run.advance()

    assert made.answers("id, response") == [("t0", "It says something."), ("t1", "Nothing.")]
    cited = [json.loads(value) for value in made.answers("citations")]
    assert sorted(cited, key=len) == [[], [CITED, CITED]]
    assert made.sql("SELECT citations->0->>'cited_text' FROM main.sentiment WHERE id = 't0'") == [
        ("Something \u2028 else",)
    ]


# --- system prompts, examples, tools ----------------------------------------------------------


def test_a_system_prompt_may_name_columns(project: Make) -> None:
    made = project(system="You rate {{ corpus }} only.")
    made.load([("tweets", "t0", "x"), ("reviews", "r0", "y")])

    made.materialize("tweets", "reviews")
    made.sql("UPDATE texts SET corpus = corpus")
    assert made.materialize("tweets", "reviews").rows == []

    systems = {params["system"] for params in _requests(made)}
    assert systems == {"You rate tweets only.", "You rate reviews only."}


def test_a_row_whose_system_prompt_changes_is_asked_again(project: Make) -> None:
    made = project(system=[{"type": "text", "text": "About {{ it }}."}])
    _with_column(made, "VARCHAR", ["one", "two"])
    made.materialize()

    made.sql("UPDATE texts SET it = 'three' WHERE id = 't1'")

    assert made.materialize().rows == ["t1"]
    assert _requests(made)[-1]["system"] == [{"type": "text", "text": "About three."}]


def test_examples_stand_before_the_rows_own_message(project: Make) -> None:
    examples = [
        {"role": "user", "content": "Rate: great"},
        {"role": "assistant", "content": '{"label": "positive", "score": 1}'},
    ]
    made = project(params={"messages": examples})
    made.load([("tweets", "t0", "x")])

    made.materialize()

    (params,) = _requests(made)
    assert params["messages"][:-1] == examples
    assert params["messages"][-1] == {"role": "user", "content": "Rate t0 now: x"}


def test_another_example_asks_every_row_again(project: Make) -> None:
    made = project(params={"messages": [{"role": "user", "content": "One"}]})
    made.load([("tweets", "t0", "x")])
    made.materialize()

    made.declare(params={"messages": [{"role": "user", "content": "Another"}]})

    assert made.materialize().rows == ["t0"]


def test_the_input_of_a_tool_that_has_to_be_used_is_the_answer_in_typed_columns(
    project: Make,
) -> None:
    made = project(
        params={
            "tools": [{"name": "rate", "description": "Rates."}],
            "tool_choice": {"type": "tool", "name": "rate"},
        }
    )
    made.load([("tweets", "t0", "x")])
    used = {"type": "tool_use", "id": "toolu_1", "name": "rate"}
    said = {"type": "text", "text": "I use the tool."}
    given = {**used, "input": {"label": "negative", "score": 0.25}}
    made.script.replies_with("t0", Reply([said, given], stop_reason="tool_use"))

    made.materialize()

    (params,) = _requests(made)
    assert "output_config" not in params
    assert set(params["tools"][0]["input_schema"]["properties"]) == {"label", "score"}
    assert made.answers("id, label, score") == [("t0", "negative", 0.25)]


def test_how_the_sdk_spells_a_schema_asks_no_row_again_also_for_a_tool(project: Make) -> None:
    tool = {"tools": [{"name": "rate"}], "tool_choice": {"type": "tool", "name": "rate"}}
    shape = project(params=tool).asset.declaration.shape

    spelt = replace(shape, tool_schema={"spelt": "otherwise"})

    assert spelt.digest() == shape.digest()
    assert "otherwise" in str(spelt.tree())


def test_a_tool_of_the_apis_own_is_no_answer(project: Make) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    choice = {"type": "tool", "name": "web_search"}
    made = project(params={"tools": [search], "tool_choice": choice})

    tree = made.asset.declaration.shape.tree()

    assert "format" in tree["output_config"]
    assert tree["tools"] == [search]
    assert not made.asset.declaration.output.is_of_tool


def test_without_an_output_the_input_of_a_tool_is_the_response_as_json(project: Make) -> None:
    made = project(
        output=None,
        params={
            "tools": [{"name": "rate", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any"},
        },
    )
    made.load([("tweets", "t0", "x")])
    given = {"type": "tool_use", "id": "toolu_1", "name": "rate", "input": {"stars": 3}}
    made.script.replies_with("t0", Reply([given], stop_reason="tool_use"))

    made.materialize()

    assert [json.loads(response) for response in made.answers("response")] == [{"stars": 3}]


# --- caching --------------------------------------------------------------------------------

LONG: Final = "Rate with great care. " * 200


def test_what_all_rows_share_is_cached_and_read_from_the_cache(project: Make) -> None:
    made = project(cache="1h", prompt=f"{LONG}\n\n{{{{ text }}}}")
    made.load([("tweets", f"t{n}", f"Text {n}") for n in range(5)])

    made.materialize()

    for shared, own in _content(made):
        assert shared["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
        assert shared["text"].startswith("Rate with great care.")
        assert (shared["text"] + own["text"]).startswith(f"{LONG}\n\nText ")
    read, written = made.sql(
        "SELECT sum(_cache_read_tokens), sum(_cache_write_tokens) FROM main.sentiment"
    )[0]
    assert read == 4 * written > 0


def test_the_breakpoint_is_behind_the_last_thing_that_is_shared(project: Make) -> None:
    made = project(
        cache="5m",
        system=LONG,
        prompt="{{ id }} {{ text }}",
        params={"messages": [{"role": "user", "content": LONG}]},
    )
    made.load([("tweets", "t0", "x")])

    made.materialize()

    (params,) = _requests(made)
    assert params["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert "cache_control" not in str(params["system"])
    assert params["messages"][1]["content"] == [{"type": "text", "text": "t0 x"}]


@pytest.mark.parametrize("text", ["x", " "], ids=["text", "blank"])
def test_caching_asks_no_row_again_and_fails_none(project: Make, text: str) -> None:
    made = project(system=LONG, prompt=f"{LONG} {{{{ text }}}}")
    made.load([("tweets", "t0", text)])
    made.materialize()

    made.declare(system=LONG, prompt=f"{LONG} {{{{ text }}}}", cache="1h")

    assert made.materialize().rows == []
    assert made.answers() == ["t0"]
    run = made.start(refresh=True)
    made.end_batches()
    assert run.advance() is None
    assert made.answers("id, _cache_write_tokens > 0") == [("t0", True)]


# --- functions ------------------------------------------------------------------------------


def _loudly(row: Mapping[str, Any]) -> str:
    return f"Rate {row['id']} now: {row['text']}".upper()


def test_a_function_makes_a_prompt_of_a_row(project: Make) -> None:
    made = project(prompt=_loudly)
    made.load([("tweets", "t0", "good"), ("tweets", "t1", None)])

    made.materialize()

    assert sorted(_content(made)) == ["RATE T0 NOW: GOOD", "RATE T1 NOW: NONE"]
    assert made.answers() == ["t0", "t1"]


def test_a_function_that_returns_what_a_template_said_asks_nothing_again(project: Make) -> None:
    made = project()
    made.load([("tweets", "t0", "x")])
    made.materialize()

    made.declare(prompt=lambda row: f"Rate {row['id']} now: {row['text']}")

    assert made.materialize().rows == []


def test_a_function_may_return_blocks_or_whole_params(project: Make) -> None:
    def asked(row: Mapping[str, Any]) -> object:
        block = {"type": "text", "text": f"Rate {row['id']}"}
        if row["id"] == "t0":
            return [block]
        message = {"role": "user", "content": [block]}
        return {"system": "Be brief.", "messages": [message], "stop_sequences": ["END"]}

    made = project(prompt=asked, system="Be long.")
    made.load([("tweets", "t0", "x"), ("tweets", "t1", "y")])

    made.materialize()
    assert made.materialize().rows == []

    first, second = sorted(_requests(made), key=lambda params: str(params["messages"]))
    assert (first["system"], second["system"]) == ("Be long.", "Be brief.")
    assert second["stop_sequences"] == ["END"]
    assert second["model"] == first["model"] == "claude-haiku-5-5"
    assert "output_config" in second
    assert made.answers() == ["t0", "t1"]


def test_an_effort_that_a_function_returns_stands_beside_the_schema(project: Make) -> None:
    def asked(row: Mapping[str, Any]) -> object:
        message = {"role": "user", "content": f"Rate {row['id']}"}
        return {"messages": [message], "output_config": {"effort": "low"}}

    made = project(prompt=asked)
    made.load([("tweets", "t0", "x")])

    made.materialize()

    (params,) = _requests(made)
    assert params["output_config"]["effort"] == "low"
    assert params["output_config"]["format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "returned a NoneType"),
        (" ", "The prompt is empty."),
        ([{"type": "picture"}], "'picture' does not match"),
        ([], "all messages must have non-empty content"),
        ({"system": "x"}, "without `messages`"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user", "content": "x"}], "model": "y"}, "`model`"),
        ({"messages": [{"role": "user", "content": "x"}], "sistem": "y"}, "sistem"),
        ("half of a character: \ud800", "UnicodeEncodeError"),
        ({"\ud800": 1}, "\\ud800"),
        (
            {
                "messages": [{"role": "user", "content": "x"}],
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "a format, which `output` declares",
        ),
        (ValueError("for a reason"), "ValueError: for a reason"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() else "",
)
def test_a_row_of_which_a_function_makes_no_request_fails_alone(
    project: Make, returned: object, problem: str
) -> None:
    def asked(row: Mapping[str, Any]) -> object:
        if row["id"] == "t1":
            return "Rate t1 please"
        if isinstance(returned, Exception):
            raise returned
        return returned

    made = project(prompt=asked)
    made.load([("tweets", "t0", "x"), ("tweets", "t1", "y")])

    made.materialize()

    ((failed, kind, message),) = made.failures("id, _error_type, _error_message")
    assert (failed, kind) == ("t0", "invalid_row")
    assert problem in message
    assert made.answers() == ["t1"]


def test_a_function_is_called_once_for_each_time_that_its_row_is_read(project: Make) -> None:
    calls: list[str] = []

    def asked(row: Mapping[str, Any]) -> str:
        calls.append(row["id"])
        return f"Rate {row['id']}"

    made = project(prompt=asked)
    made.load([("tweets", f"t{n}", "x") for n in range(10)])
    made.start()

    assert len(calls) == 2 * 10  # once to plan, once to send
