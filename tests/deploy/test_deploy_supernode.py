"""A SuperNode that has lost a thread is ended, so that it is started again."""

from __future__ import annotations

import subprocess
import sys

from mammo_fed.federation.flwr_internals.supernode import THREAD_DIED

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
