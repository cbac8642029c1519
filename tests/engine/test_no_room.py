"""No room on the disk where results are downloaded to: nothing is lost, and the run says so."""

import errno
import io
import os
import tempfile
from pathlib import Path

import pytest
from kit import Project

from dagster_claude_batch.errors import NoTemporarySpaceError, TemporaryFileError
from dagster_claude_batch.staged import Staged


class FullDisk(io.FileIO):
    """A file that exists, and in which not one byte finds room."""

    def write(self, _: object, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("buffered", [1, 2**20], ids=["as it comes in", "when it is read"])
def test_results_that_find_no_room_stay_out_and_are_collected_by_the_next_run(
    tweets: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffered: int
) -> None:
    tweets.script.ends_with("t3", "errored:invalid_request_error")
    run = tweets.start()
    tweets.end_batches()

    with monkeypatch.context() as disk:
        file = tmp_path / "results"
        disk.setattr(
            tempfile, "TemporaryFile", lambda: io.BufferedRandom(FullDisk(file, "w+"), buffered)
        )
        with pytest.raises(NoTemporarySpaceError, match=r"'sentiment'.*TMPDIR") as raised:
            run.advance()

    assert tempfile.gettempdir() in str(raised.value)
    assert tweets.chunk_states() == {"submitted": 1}
    assert tweets.answers() == []
    assert tweets.failures() == []

    assert tweets.materialize().rows == []
    assert len(tweets.answers()) == 9
    assert tweets.failures("id") == ["t3"]
    assert len(tweets.claude.simulator.bill()) == 9


def test_answers_that_are_not_on_the_disk_any_more_do_not_pass_for_landed(
    tweets: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tweets.start()
    tweets.end_batches()

    with monkeypatch.context() as disk:
        disk.setattr(Staged, "batches", lambda _: iter(()))  # a disk that gives nothing back
        with pytest.raises(TemporaryFileError, match=r"'sentiment': 10 answers.*TMPDIR"):
            run.advance()

    assert tweets.chunk_states() == {"submitted": 1}
    assert tweets.answers() == []

    assert tweets.materialize().rows == []
    assert len(tweets.answers()) == 10
    assert len(tweets.claude.simulator.bill()) == 10
