"""Reading results files in any condition: one bad line never touches its neighbours."""

import io
import json
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import SINCE_DUCKDB_2
from pydantic import BaseModel

from dagster_claude_batch.output import Output
from dagster_claude_batch.result_lines import private_file, read_lines
from dagster_claude_batch.staging import Staging

NONCE = "c0ffee00c0ffee00"
USAGE = {"input_tokens": 7, "output_tokens": 3}
TEXT = Output.from_model(None, asset="texts")


class Verdict(BaseModel):
    label: Literal["good", "bad"]


VERDICT = Output.from_model(Verdict, asset="verdicts")


def line(ordinal: int, result: dict[str, Any], *, nonce: str = NONCE) -> bytes:
    value = {"custom_id": f"{nonce}-{ordinal}", "result": result}
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def succeeded(*content: dict[str, Any], **message: Any) -> dict[str, Any]:
    defaults = {"model": "claude-haiku-5-5", "stop_reason": "end_turn", "usage": USAGE}
    return {"type": "succeeded", "message": {**defaults, "content": list(content), **message}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def errored(error_type: Any, message: Any = "no") -> dict[str, Any]:
    error = {"type": "error", "request_id": "req_1", "error": {"type": error_type}}
    error["error"]["message"] = message
    return {"type": "errored", "error": error}


def stage(*lines: bytes, size: int = 4, output: Output = TEXT) -> dict[int, dict[str, Any]]:
    """What is staged of a file, by ordinal."""
    staging = Staging(output, nonce=NONCE, size=size)
    with private_file() as file:
        file.writelines(lines)
        staging.read(file)
    rows = staging.table().to_pylist()
    by_ordinal = {row["ordinal"]: row for row in rows}
    assert len(by_ordinal) == len(rows)
    return by_ordinal


def outcomes(staged: dict[int, dict[str, Any]]) -> dict[int, str | None]:
    return {ordinal: row["outcome"] for ordinal, row in sorted(staged.items())}


def response(row: dict[str, Any]) -> str:
    return json.loads(row["answer"])["response"]


GOOD = [line(n, succeeded(text(f"Answer {n}"))) for n in range(4)]

TOOL_USE = line(
    2,
    succeeded({"type": "tool_use", "name": "t", "input": {"x": [1, 2.50]}}, stop_reason="tool_use"),
)
"""Its answer is JSON, whose spelling tells who has read the line."""

RAW_ANSWER = line(1, succeeded(text("ANSWER")))


@pytest.mark.parametrize("stop_reason", ["end_turn", "max_tokens", "refusal", None])
def test_an_answer_is_staged_as_it_stands_if_it_is_proven_and_has_come_to_its_end(
    stop_reason: str | None,
) -> None:
    proven, in_other_case = '{"label" :  "good"}', '{"label":  "Good"}'
    lines = [
        line(n, succeeded(text(said), stop_reason=stop_reason))
        for n, said in enumerate([proven, in_other_case])
    ]

    staged = stage(*lines, output=VERDICT)

    answers = [staged[n]["answer"] for n in range(2)]
    assert answers == ([proven, '{"label":"good"}'] if stop_reason == "end_turn" else [None, None])


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (RAW_ANSWER.replace(b"ANSWER", b"a \xff b"), "a \ufffd b"),
        (RAW_ANSWER.replace(b"ANSWER", b"a \xed\xa0\x80 b"), "a \ufffd\ufffd\ufffd b"),
        (RAW_ANSWER.replace(b"ANSWER", b"a \\ud800 b"), "a \ufffd\ufffd\ufffd b"),
        (RAW_ANSWER.replace(b"ANSWER", b"a \\ud83d\\ude00 b"), "a 😀 b"),
        (RAW_ANSWER.replace(b"ANSWER", b"a \\u0000 b"), "a \x00 b"),
        (RAW_ANSWER.replace(b"ANSWER", b"a \x00 b"), "a \x00 b"),
        (RAW_ANSWER.replace(b"ANSWER", b"a \r b"), "a \r b"),
        (RAW_ANSWER.rstrip() + b"\r\n", "ANSWER"),
        (b"\n \r\n\n" + RAW_ANSWER, "ANSWER"),
        (b"\xef\xbb\xbf" + RAW_ANSWER, "ANSWER"),
        (b"\x00\x00\x00" + RAW_ANSWER, "ANSWER"),
        pytest.param(
            b'{"x":' + b"[" * 5_000 + b"]" * 5_000 + b"," + RAW_ANSWER[1:],
            "ANSWER",
            marks=SINCE_DUCKDB_2,
        ),
        (b"[1, " + RAW_ANSWER.rstrip() + b"]\n", "ANSWER"),
    ],
    ids=[
        "invalid UTF-8",
        "raw surrogate",
        "lone surrogate",
        "pair of surrogates",
        "escaped NUL",
        "raw NUL",
        "raw carriage return",
        "CRLF",
        "empty lines",
        "byte order mark",
        "zeros before",
        "deep nesting",
        "in a list",
    ],
)
def test_an_answer_is_read_however_its_line_was_spoilt(bad: bytes, expected: str) -> None:
    staged = stage(GOOD[0], bad, GOOD[2], GOOD[3])

    assert outcomes(staged) == {0: None, 1: None, 2: None, 3: None}
    assert response(staged[1]) == expected


@pytest.mark.parametrize(
    ("bad", "outcome"),
    [
        (b"[1, 2]\n", "no line"),
        (b"17\n", "no line"),
        (b"null\n", "no line"),
        *(  # DuckDB's message about each quotes it, and some of them are cut within a letter
            (json.dumps([("x" * n + "é" * 99)], ensure_ascii=False).encode() + b"\n", "no line")
            for n in range(2)
        ),
        (b"{}\n", "no line"),
        (b'{"custom_id": null, "result": {"type": "expired"}}\n', "no line"),
        (b'{"custom_id": 1, "result": {"type": "expired"}}\n', "no line"),
        (line(1, {"type": "expired"}, nonce="someone"), "no line"),
        (line(99, {"type": "expired"}), "no line"),
        (b'{"custom_id": "%s-01", "result": {"type": "expired"}}\n' % NONCE.encode(), "no line"),
        (
            b'{"custom_id": "%s-%s", "result": {}}\n' % (NONCE.encode(), b"9" * 5_000),
            "no line",
        ),
        (b'{"custom_id": "%s-1", "result": 7}\n' % NONCE.encode(), "unrecognized_result"),
        (b'{"custom_id": "%s-1"}\n' % NONCE.encode(), "unrecognized_result"),
        (b'{"custom_id": "%s-1", "result": {"ty\n' % NONCE.encode(), "unrecognized_result"),
        (line(1, {"type": "deferred"}), "unrecognized_result"),
        (line(1, {"type": {"junk": [1]}}), "unrecognized_result"),
        (line(1, {"type": "succeeded"}), "unrecognized_result"),
        (line(1, {"type": "succeeded", "message": [1]}), "unrecognized_result"),
        (line(1, succeeded()), "invalid_output"),
        (line(1, succeeded({"type": "junk"}, {"type": "text"})), "invalid_output"),
        (line(1, succeeded(stop_reason="dreaming")), "unrecognized_result"),
        (line(1, errored("overloaded_error")), "overloaded_error"),
        (line(1, errored("answer")), "unrecognized_result"),
        (line(1, errored("")), "unrecognized_result"),
        (line(1, errored(["junk"])), "unrecognized_result"),
        (line(1, errored("'); DROP TABLE texts; --")), "unrecognized_result"),
    ],
)
def test_a_line_that_is_no_answer_ends_as_one_outcome(bad: bytes, outcome: str) -> None:
    staged = stage(GOOD[0], bad, GOOD[2], GOOD[3])

    assert staged.pop(1, {"outcome": "no line"})["outcome"] == outcome
    assert {ordinal: response(row) for ordinal, row in staged.items()} == {
        0: "Answer 0",
        2: "Answer 2",
        3: "Answer 3",
    }


def test_sound_lines_are_read_by_duckdb_itself() -> None:
    with private_file() as file:
        file.write(b"".join(GOOD))

        assert sum(batch.num_rows for batch in read_lines(file, nonce="nonce", size=4)) == 4


@pytest.mark.parametrize("neighbour", [GOOD[0], b"[1, 2\n"], ids=["DuckDB", "Python"])
def test_a_text_without_text_is_no_answer_whoever_has_read_it(neighbour: bytes) -> None:
    staged = stage(neighbour, line(1, succeeded({"type": "text"}, {"type": "text", "text": None})))

    assert staged[1]["outcome"] == "invalid_output"


def test_the_last_line_may_lack_its_end() -> None:
    assert outcomes(stage(*GOOD[:3], GOOD[3].rstrip())) == dict.fromkeys(range(4))


def test_a_line_that_was_cut_off_at_the_end_of_the_file_is_no_line() -> None:
    assert outcomes(stage(*GOOD[:3], GOOD[3][:60])) == dict.fromkeys(range(3))


def test_two_results_on_one_line_are_both_read() -> None:
    staged = stage(GOOD[0], GOOD[1].rstrip() + GOOD[2], GOOD[3])

    assert outcomes(staged) == dict.fromkeys(range(4))


def test_a_result_behind_the_beginning_of_another_is_read() -> None:
    staged = stage(GOOD[0], GOOD[1][:70] + GOOD[2], GOOD[3])

    assert outcomes(staged) == {0: None, 1: "unrecognized_result", 2: None, 3: None}


@pytest.mark.parametrize("length", [1_000_000, 20_000_000, 40_000_000])
def test_a_long_line_is_an_answer_as_any_other(length: int) -> None:
    long = "x" * length

    staged = stage(GOOD[0], line(1, succeeded(text(long))), TOOL_USE, GOOD[3])

    assert response(staged[1]) == long
    assert staged[2] == stage(TOOL_USE)[2]
    assert len(staged) == 4


@pytest.mark.parametrize("bad", [b"[", b"{", b'"', b'{"custom_id":', b'{"custom_id": "a", "x": ['])
def test_a_line_without_its_end_does_not_swallow_the_next(bad: bytes) -> None:
    staged = stage(GOOD[0], bad + b"\n", TOOL_USE, GOOD[3])

    assert outcomes(staged) == {0: None, 2: None, 3: None}
    assert staged[2] == stage(TOOL_USE)[2]


@pytest.mark.parametrize("number", [10**30, -1, 10**15, "junk", 1.5e300, None, [1]])
def test_a_count_that_cannot_be_one_is_unknown_and_costs_no_answer(number: Any) -> None:
    bad = line(1, succeeded(text("Fine"), usage={"input_tokens": number, "output_tokens": 3}))

    staged = stage(GOOD[0], bad)

    assert response(staged[1]) == "Fine"
    assert (staged[1]["input_tokens"], staged[1]["output_tokens"]) == (None, 3)


EXPIRED = line(1, {"type": "expired"})
REFUSED = line(1, succeeded(text("I cannot"), stop_reason="refusal"))
UNREADABLE = line(1, {"type": "expired"})[:-10] + b"\n"


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        ([GOOD[1], GOOD[1]], None),
        ([EXPIRED, GOOD[1]], None),
        ([GOOD[1], EXPIRED], None),
        ([EXPIRED, REFUSED], "refusal"),
        ([UNREADABLE, EXPIRED], "expired"),
        ([EXPIRED, UNREADABLE], "expired"),
    ],
    ids=["twice", "answered late", "answered early", "billed late", "late", "early"],
)
def test_of_doubled_lines_the_best_counts(lines: list[bytes], outcome: str | None) -> None:
    assert outcomes(stage(GOOD[0], *lines)) == {0: None, 1: outcome}


@pytest.mark.parametrize("end", [b"\n", b""], ids=["with an end", "cut off after its last"])
@pytest.mark.parametrize(
    "spelt",
    [
        lambda custom_id, result: f'{{"custom_id":"{custom_id}","result":{result}}}',
        lambda custom_id, result: f'{{ "custom_id" : "{custom_id}", "result" : {result} }}',
        lambda custom_id, result: f'{{"result":{result},"custom_id":"{custom_id}"}}',
    ],
    ids=["as the API spells it", "with spaces", "result first"],
)
def test_each_failure_has_its_raw_result_however_sound_lines_are_spelt(
    spelt: Callable[[str, str], str], end: bytes
) -> None:
    results = [errored("invalid_request_error", f"no {n}") for n in range(2)]
    results += [succeeded(text("Answer 2")), errored("overloaded_error", "é")]
    lines = [
        spelt(f"{NONCE}-{n}", json.dumps(result, ensure_ascii=False)).encode()
        for n, result in enumerate(results)
    ]

    staged = stage(b"\n".join(lines) + end)

    found = {n: row["response"] and json.loads(row["response"]) for n, row in staged.items()}
    assert found == {0: results[0], 1: results[1], 2: None, 3: results[3]}


def test_a_failure_behind_the_beginning_of_an_answer_keeps_its_raw_line() -> None:
    begun = f'{{"custom_id":"{NONCE}-0","result":{{"type":'.encode()
    failed = line(1, errored("api_error", "own"))

    staged = stage(GOOD[0], begun + failed)

    assert outcomes(staged) == {0: None, 1: "api_error"}
    assert json.loads(staged[1]["response"]) == (begun + failed).decode()


def test_a_failure_keeps_its_own_raw_result_although_an_answer_names_its_id() -> None:
    liar = {"custom_id": f"{NONCE}-1", "result": "mine"}
    tool = {"type": "tool_use", "name": "t", "input": liar}

    staged = stage(
        line(0, succeeded(tool, stop_reason="tool_use")), line(1, errored("api_error", "own"))
    )

    assert json.loads(staged[1]["response"])["error"]["error"]["message"] == "own"


def test_a_file_that_the_system_does_not_show_by_a_path_is_read_too() -> None:
    staging = Staging(TEXT, nonce=NONCE, size=4)
    file = io.BytesIO()
    file.writelines(GOOD)

    staging.read(file)

    assert outcomes({row["ordinal"]: row for row in staging.table().to_pylist()}) == dict.fromkeys(
        range(4)
    )


# --- anything at all ------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
RESULTS = st.one_of(
    st.builds(lambda value: succeeded(text(value)), WORDS),
    st.builds(lambda label: succeeded(text(json.dumps({"label": label}))), WORDS | st.just("good")),
    st.builds(
        lambda value: succeeded(
            {"type": "tool_use", "name": "t", "input": {"x": value}}, stop_reason="tool_use"
        ),
        VALUES,
    ),
    st.builds(lambda value: succeeded(text(value), stop_reason="max_tokens"), WORDS),
    st.builds(errored, st.sampled_from(["api_error", "invalid_request_error"]), WORDS),
    st.sampled_from([{"type": "expired"}, {"type": "canceled"}, {"type": "deferred"}]),
)
BYTES = st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b" "))
JUNK = st.sampled_from(
    [b'"', b"{", b"}", b"[", b"\\", b"\x00", b"\xff", b"\\ud800", b"\r", b'"custom_id"', b"1e999"]
)


@st.composite
def spoilt(draw: st.DrawFn, sound: bytes) -> bytes:
    """The line with anything done to it, but whose it is."""
    beginning = sound.index(b'"result"')
    start = draw(st.integers(beginning, len(sound) - 1))
    end = draw(st.integers(start, len(sound) - 1))
    return draw(
        st.sampled_from(
            [
                sound[:start] + draw(BYTES | JUNK) + sound[end:],
                sound[:start] + sound[end:],
                sound[:start] + b"\n",
                draw(BYTES | JUNK) + b"\n",
                draw(VALUES.map(json.dumps)).encode() + b"\n",
                b"",
                sound + sound,
                sound.rstrip() + sound,
                draw(BYTES | JUNK) + sound,
            ]
        )
    )


@st.composite
def files(draw: st.DrawFn) -> tuple[list[bytes], list[bytes], set[int]]:
    """A sound file, the same with some lines spoilt, and which are not."""
    sound = [line(n, result) for n, result in enumerate(draw(st.lists(RESULTS, max_size=8)), 1000)]
    touched = draw(st.sets(st.integers(0, max(0, len(sound) - 1)), max_size=3))
    bad = [draw(spoilt(raw)) if n in touched else raw for n, raw in enumerate(sound)]
    return sound, bad, {1000 + n for n in range(len(sound)) if n not in touched}


@pytest.mark.parametrize("output", [TEXT, VERDICT], ids=["text", "model"])
@settings(max_examples=40, deadline=None)
@given(file=files())
def test_untouched_lines_are_staged_as_if_no_line_had_been_spoilt(
    output: Output, file: tuple[list[bytes], list[bytes], set[int]]
) -> None:
    sound, bad, untouched = file

    staged = stage(*bad, size=2000, output=output)

    expected = stage(*sound, size=2000, output=output)
    for row in (*staged.values(), *expected.values()):
        row["answer"] = row["answer"] and json.loads(row["answer"])  # whatever its spelling
    assert {n: staged.get(n) for n in untouched} == {n: expected[n] for n in untouched}
    assert staged.keys() <= expected.keys()
