"""Progress: a bar on a terminal, a line now and then elsewhere, nothing on other ranks."""

import io

import pytest
from rich.console import Console

from minillm.common import console
from minillm.models import LanguageModel
from minillm.rollout import decode
from tests.helpers import prompt_batch
from tests.tiny import make_pair


@pytest.fixture
def screen(monkeypatch):
    """Call it for what progress writes to; no work is too short to be shown."""
    monkeypatch.setattr(console, "_SOON", 0.0)
    monkeypatch.setattr(console, "_OFTEN", 0.0)

    def made(terminal):
        made = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        monkeypatch.setattr(console, "get_console", lambda: made)
        return made.file

    return made


def test_a_terminal_shows_a_bar_that_goes_and_a_file_lines(screen):
    for terminal in (True, False):
        file = screen(terminal)
        assert list(console.tracked("abcd", "Reading [x]")) == list("abcd")
        text = file.getvalue()
        assert "Reading [x]" in text and ("\x1b[" in text) == terminal
        if not terminal:
            assert [line.partition(",")[0] for line in text.splitlines()] == [
                f"Reading [x]: {share}%" for share in (25, 50, 75, 100)
            ]
            assert text.endswith("about 0 s left\n")


def test_short_work_other_ranks_and_work_of_unknown_length_are_silent_in_a_file(screen, monkeypatch):
    file = screen(False)
    with console.progress("Writing") as advance:
        advance(3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    list(console.tracked("abcd", "Reading"))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(console, "_OFTEN", 60.0)
    list(console.tracked("abcd", "Reading"))
    assert file.getvalue() == ""


def test_an_error_passes_and_the_bar_is_gone(screen):
    file = screen(True)
    with pytest.raises(KeyError), console.progress("Writing"):
        raise KeyError
    assert "Writing" in file.getvalue() and console.get_console()._live_stack == []


def test_decoding_tells_how_many_tokens_are_done(screen, monkeypatch):
    """Rows that have ended count as whole: of 3 x 6 tokens none is missing at the end, and none comes twice."""
    file, pair = screen(False), make_pair()
    decode(
        LanguageModel(pair.student), None, prompt_batch(), seeds=[1, 2, 3], stop_ids=pair.stop_ids, pad_id=0,
        max_new_tokens=6, batch_size=2,
    )  # fmt: skip
    shares = [int(line.split(": ")[1].split("%")[0]) for line in file.getvalue().splitlines()]
    assert "Writing 3 answers: " in file.getvalue()
    assert shares == sorted(set(shares)) and shares[-1] == 100 and len(shares) > 3
