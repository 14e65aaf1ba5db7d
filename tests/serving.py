"""A teacher's server in a thread of the test."""

import threading
import time
from contextlib import contextmanager

import uvicorn

from minillm.models import LanguageModel, solo
from minillm.models.served import MODEL
from minillm.parallel import free_port
from minillm.serve import about_of, app_of, socket
from tests.tiny import make_tokenizer


@contextmanager
def serving(network, *, port=0, token="", max_tokens=4096, max_length=512):
    """The address of a server of the network, and a function that stops it early."""
    pair = solo(network, make_tokenizer())
    model = LanguageModel(network, pair.n_vocab).frozen()
    about = about_of(model, pair) | {"max_tokens": max_tokens, "max_length": max_length}
    options = dict(log_level="warning", headers=[(MODEL, about["digest"])], timeout_graceful_shutdown=1)
    listening = socket.create_server(("127.0.0.1", port or free_port()))
    server = uvicorn.Server(uvicorn.Config(app_of(model, about, token), **options))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def stop():
        server.should_exit = True
        thread.join()
        listening.close()

    yield f"http://127.0.0.1:{listening.getsockname()[1]}", stop
    stop()
