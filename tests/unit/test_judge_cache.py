"""The judge's replies on disk: damaged, cut short by a kill, not writable."""

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minillm.common.errors import StorageError
from tests.chat_server import items, judges, scores_of, serving


@pytest.fixture
def make(tmp_path, monkeypatch):
    return judges(tmp_path, monkeypatch)


def test_a_damaged_file_is_said_and_asked_again(make, tmp_path, capsys):
    with serving(otherwise=scores_of) as (_, url):
        make(url).rate(items(6))
        files = sorted((tmp_path / "replies").rglob("*.json"))
        assert len(files) == 6
        text = files[0].read_text()
        for file, damaged in zip(
            files, [text[: len(text) // 2], "", "[]", '{"replies": [8]}', '{"replies": 8}'], strict=False
        ):
            file.write_text(damaged)
        (files[0].parent / f".{files[0].name}.1").write_text("what a kill left")
        ratings = make(url).rate(items(6))
        assert ratings.scores == [(9, 4)] * 6 and ratings.counts()["asked"] == 5
        said = capsys.readouterr().out
        assert all(file.name in said for file in files[:5]) and files[5].name not in said
        assert make(url).rate(items(6)).counts()["from_cache"] == 6


@pytest.mark.slow
def test_a_killed_process_pays_for_nothing_twice(make, tmp_path):
    code = (
        "import sys; from minillm.evaluation.judge.judge import Item, Judge\n"
        "items = [Item(f'id{i}', f'Question {i}?', f'reference {i}', f'answer {i}') for i in range(30)]\n"
        "Judge(sys.argv[1], 'm', sys.argv[2], 'JUDGE_API_KEY', concurrency=3).rate(items)"
    )
    reached, go_on = threading.Event(), threading.Event()
    sent = itertools.count(1)

    def otherwise(body):
        number = next(sent)
        if number == 12:
            reached.set()
        if number >= 10:
            go_on.wait(30)
        return scores_of(body)

    with serving(otherwise=otherwise) as (server, url):
        process = subprocess.Popen(
            [sys.executable, "-c", code, url, str(tmp_path / "replies")], cwd=Path(__file__).parents[2]
        )
        assert reached.wait(60)  # 9 are answered, 3 on their way
        kept = len(list((tmp_path / "replies").rglob("*.json")))
        process.kill()
        process.wait()
        go_on.set()
        ratings = make(url, timeout=5.0).rate(items(30))
    assert kept == 9 and ratings.counts()["from_cache"] == 9 and ratings.scores == [(9, 4)] * 30
    assert len(server.requests) == 12 + 21


def test_a_cache_that_cannot_be_written_stops_before_anything_is_paid_for(make, tmp_path):
    (tmp_path / "file").write_text("")
    with serving() as (server, url):
        with pytest.raises(StorageError, match="cache_dir=.*file"):
            make(url, cache_dir=tmp_path / "file" / "replies").rate(items())
        (tmp_path / "replies").mkdir()
        for shard in range(256):
            (tmp_path / "replies" / f"{shard:02x}").write_text("")  # a disk that refuses midway
        with pytest.raises(StorageError, match="make room"):
            make(url, concurrency=1).rate(items(9))
    assert len(server.requests) == 1
