"""One short try tells whether the hub is within reach."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from minillm.common.hub import notice_offline


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
