"""A SuperNode that has lost a thread is ended, so that it is started again; and it asks soon after a message."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mammo_fed.federation.flwr_internals import supernode
from mammo_fed.federation.flwr_internals.supernode import LAST_PAUSE_SECONDS, THREAD_DIED, EagerPauses

LOSES_A_THREAD = """
import threading, time
from mammo_fed.federation.flwr_internals.supernode import end_with_any_thread

end_with_any_thread()
thread = threading.Thread(target=lambda: {body})
thread.start()
thread.join()
time.sleep(0.2)
print("still here")
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    code = LOSES_A_THREAD.format(body=body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_deploy_process_ends_with_a_thread_that_fails_and_says_no_more_than_its_kind():
    ended = run("int('patient-17')")
    assert ended.returncode == THREAD_DIED
    assert "still here" not in ended.stdout
    assert "ValueError" in ended.stderr
    assert "patient-17" not in ended.stderr


def test_deploy_process_outlives_a_thread_that_ends_well():
    assert run("None").stdout == "still here\n"


LOSES_ITS_MAIN_LOOP = """
import sys, threading, time
from mammo_fed.federation.flwr_internals import supernode

def flower_supernode():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {body}

supernode.flower_supernode = flower_supernode
supernode.main()
"""


@pytest.mark.parametrize("body", ["return", "int('patient-17')"])
def test_deploy_process_ends_with_its_main_loop_though_another_thread_goes_on(body: str):
    program = LOSES_ITS_MAIN_LOOP.format(body=body)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == THREAD_DIED
    assert "patient-17" not in ended.stderr


INSTALLED = """
from flwr.supernode import start_client_internal
from mammo_fed.federation.flwr_internals.supernode import EagerPauses
pauses = EagerPauses()
pauses.install()
print(start_client_internal.time is pauses, start_client_internal._pull_and_store_message == pauses.pull)
"""


def test_deploy_node_in_its_own_process_pauses_as_installed():
    done = subprocess.run([sys.executable, "-c", INSTALLED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True True\n"


def test_deploy_node_asks_soon_after_a_message_and_ever_less_often_without_one(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    messages = iter([None, None, 7, None])
    monkeypatch.setattr(supernode.time, "sleep", slept.append)
    monkeypatch.setattr(supernode.start_client_internal, "_pull_and_store_message", lambda **_: next(messages))
    pauses = EagerPauses()
    for _ in range(12):
        pauses.sleep(3)
    assert slept == sorted(slept)
    assert slept[0] <= 0.5
    assert slept[-1] == LAST_PAUSE_SECONDS == 3.0
    assert [pauses.pull(), pauses.pull()] == [None, None]
    pauses.sleep(3)
    assert pauses.pull() == 7
    pauses.sleep(3)
    assert slept[-2:] == [LAST_PAUSE_SECONDS, slept[0]]
    pauses.sleep(0.5)
    assert slept[-1] < 0.5
