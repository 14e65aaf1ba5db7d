"""The hub: one short try tells whether it is within reach; what its names are; a student is sent to it."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from minillm.common.errors import ConfigError, StorageError
from minillm.common.hub import hub_id, notice_offline, repository


class Answers(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("reached", [True, False])
def test_a_hub_that_does_not_answer_is_not_asked_again(reached, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        if reached:
            threading.Thread(target=server.handle_request, daemon=True).start()
        else:
            server.server_close()
        notice_offline.cache_clear()
        notice_offline()
    notice_offline.cache_clear()
    assert constants.HF_HUB_OFFLINE is not reached


def student(folder):
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nText")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("private", [True, False])
def test_a_directory_is_sent_to_a_repository_that_is_made_before(hub, tmp_path, private):
    send = repository("me/mine", private=private)
    assert [each["visibility"] for each in hub.made] == ["private" if private else "public"] and not hub.files
    assert send(student(tmp_path / "student")) == f"{hub.address}/me/mine"
    assert hub.files["model.safetensors"] == b"weights" and hub.files["README.md"].endswith(b"Text")


def test_what_is_wrong_is_said_before_anything_is_sent(hub, monkeypatch):
    with pytest.raises(ConfigError, match="push_to_hub='mine': wanted OWNER/NAME"):
        repository("mine", private=True)
    hub.refuse["/repos/create"] = 401
    with pytest.raises(StorageError, match=r"me/mine: the hub answers 401; wanted a token that may write there"):
        repository("me/mine", private=True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"me/mine: http://127.0.0.1:9 gives no usable answer"):
        repository("me/mine", private=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set; unset it"):
        repository("me/mine", private=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no token; run `hf auth login`, or set HF_TOKEN"):
        repository("me/mine", private=True)
    assert not hub.made and not hub.files


def test_a_commit_that_is_refused_leaves_the_directory(hub, tmp_path):
    send, folder = repository("me/mine", private=True), student(tmp_path / "student")
    hub.refuse["/commit/"] = 403
    with pytest.raises(StorageError, match="the hub answers 403"):
        send(folder)
    assert len(list(folder.iterdir())) == 2


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    models = ["a/b", "a/b@main", "gpt2", "Qwen/Qwen2.5-0.5B", "runs/mine", "./a", "~/a", "a/b/c", "package:x", "m.gguf"]
    assert [hub_id(each) for each in models] == ["a/b", "a/b", "gpt2", "Qwen/Qwen2.5-0.5B", *[None] * 6]
    sets = ["a/b", "a/b:test", "builtin", "builtin:validation", "a/b.jsonl", "x.txt", "pydoc_topics", None]
    assert [hub_id(each, "dataset") for each in sets] == ["a/b", "a/b", *[None] * 6]
