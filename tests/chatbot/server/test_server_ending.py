"""The process ends as it should, even with an engine that does not come back."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the `server` extra")

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from running import SlowModel, bot_of
from chatbot.api.service import Service
from chatbot.server.app import create_app
from chatbot.server.keys import Keyring
from chatbot.server.limits import Limits
from chatbot.server.serving import serve
from chatbot.server.state import State
state = State(Service(bot_of(SlowModel(prefill=60.0))), Keyring([]), Limits(drain_seconds=0.5))
serve(create_app(state, page=False), state, "127.0.0.1", int(sys.argv[1]))
"""


@pytest.mark.parametrize(("how", "code"), [([signal.SIGTERM], 0), ([signal.SIGINT], 130), ([signal.SIGTERM] * 2, 0)])
def test_an_engine_that_hangs_does_not_keep_it(how, code):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, str(port), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        answers: list[int] = []
        asked = threading.Thread(target=ask, args=(port, answers), daemon=True)
        asked.start()
        deadline = time.monotonic() + 60
        while "parley_running" not in (text := metrics(port)) or 'parley_running{lane="generation"} 1' not in text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = time.monotonic()
        for sent in how:
            process.send_signal(sent)
            time.sleep(0.2)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    # Half a second to drain, two for last words, and at most three for connections to close.
    assert time.monotonic() - started < 15
    if how == [signal.SIGTERM]:
        asked.join(5)
        assert answers == [503]
        assert err == ""
    assert process.returncode in (code, -signal.SIGTERM if len(how) > 1 else code)
    assert "Error" not in err.replace("CancelledError", "")


def ask(port, answers):
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            answers.append(answer.status)
            connection.close()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)
        except (OSError, http.client.HTTPException):
            return  # the server has ended


def metrics(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()
