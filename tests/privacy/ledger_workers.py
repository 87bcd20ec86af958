"""Processes for the ledger's tests: a small helper that forks workers quickly, and what the workers do to a ledger."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from mammo_fed.errors import LedgerError, PrivacyRefused
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.ledger import Budget, Ledger

TASK = "c0ffee" * 8
DELTA = 1e-4


def event(*, noise: float = 20.0, steps: int = 1, sample_rate: float = 1.0, unit: str = "patient") -> PrivacyEvent:
    return PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=noise,
        steps=steps,
        sample_rate=sample_rate,
        unit=unit,
        clipping_norm=1.0,
        max_images_per_patient=4,
    )


def open_ledger(
    folder: Path, *, max_epsilon: float = 6.0, delta: float = DELTA, kind: str = "gdp", site: str = "north"
) -> Ledger:
    return Ledger.open(folder, site=site, budget=Budget(max_epsilon=max_epsilon, delta=delta), filter=kind)


def digest(reply: bytes) -> str:
    return hashlib.sha256(reply).hexdigest()


class Nursery:
    """A warm process that forks workers from this file on demand, so that starting one costs milliseconds."""

    def __enter__(self) -> Nursery:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def start(self, work: str, *arguments: Any) -> int:
        """Start a worker; gives its process id."""
        return self._ask(["start", work, *arguments])

    def wait(self, process: int) -> int:
        """Wait for a worker's end; gives its exit code, negative for a signal."""
        return self._ask(["wait", process])

    def _ask(self, question: list[Any]) -> int:
        self._process.stdin.write(json.dumps(question) + "\n")
        return int(self._process.stdout.readline())


def charge(folder: str, number: int, processes: int, rounds: int, max_epsilon: float, granted: str) -> None:
    """Ask for `rounds` rounds, budget or no budget, and settle those granted; writes down how many were granted.

    All `processes` workers declare before any of them reserves, so that none is refused beforehand.
    """
    count = 0
    with open_ledger(Path(folder), max_epsilon=max_epsilon) as ledger:
        run_id = f"run {number}"
        ledger.declare(run_id=run_id, schedule=[event(steps=rounds)], patients=["p1", "p2"])
        while sum(entry.kind == "declared" for entry in ledger.entries()) < processes:
            time.sleep(0.005)
        for round_index in range(rounds):
            try:
                reservation = ledger.reserve(run_id=run_id, round_index=round_index, task_hash=TASK, events=[event()])
            except PrivacyRefused as refusal:
                if isinstance(refusal, LedgerError):
                    raise
                continue
            ledger.settle(reservation, os.urandom(16))
            count += 1
    Path(granted).write_text(str(count))


def train(folder: str, rounds: int, seed: int, sent: str) -> None:
    """Take part in a run from the last round that was sent; every reply is noise, its digest added to `sent` as it leaves."""
    moments = np.random.default_rng(seed)
    done = Path(sent).read_text().count("\n") if Path(sent).exists() else 0
    out = os.open(sent, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with open_ledger(Path(folder)) as ledger:
        ledger.declare(run_id="run", schedule=[event(steps=rounds, noise=1000.0)], patients=["p1", "p2"])
        for round_index in range(max(0, done - 1), rounds):
            key = {"run_id": "run", "round_index": round_index, "task_hash": TASK}
            reply = ledger.stored_reply(**key)
            if reply is None:
                reservation = ledger.reserve(**key, events=[event(noise=1000.0)])
                time.sleep(moments.uniform(0, 0.002))
                reply = os.urandom(int(moments.choice([16, 20_000])))
                ledger.settle(reservation, reply)
            if round_index >= done:
                # A digest, because a kill may cut a long line in two.
                os.write(out, f"{round_index} {digest(reply)}\n".encode())


def answer_one_task(folder: str, answers: str) -> None:
    """Answer the one task that all workers were given; writes down the reply that it may send."""
    key = {"run_id": "run", "round_index": 0, "task_hash": TASK}
    with open_ledger(Path(folder)) as ledger:
        ledger.declare(run_id="run", schedule=[event()], patients=["p1"])
        try:
            reply = ledger.stored_reply(**key)
            if reply is None:
                reservation = ledger.reserve(**key, events=[event()])
                time.sleep(0.01)
                reply = os.urandom(16)
                ledger.settle(reservation, reply)
        except LedgerError:
            reply = ledger.stored_reply(**key)
    Path(answers).write_text(reply.hex())


def withdraw(folder: str, people: int, seed: int, said: str) -> None:
    """Withdraw one patient after the other, from the last that was confirmed; writes down each as its withdrawal returns."""
    moments = np.random.default_rng(seed)
    done = Path(said).read_text().count("\n") if Path(said).exists() else 0
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with open_ledger(Path(folder)) as ledger:
        for number in range(done, people):
            ledger.withdraw([[f"p{number}"]])
            os.write(out, f"{number}\n".encode())
            time.sleep(moments.uniform(0, 0.002))


def inherit(folder: str, said: str) -> None:
    """Use in a child process what its parent opened; writes down what the ledger says."""
    with open_ledger(Path(folder)) as ledger:
        child = os.fork()
        if child == 0:
            try:
                ledger.head()
            except LedgerError as error:
                Path(said).write_text(str(error))
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def fill(folder: str, bytes_per_file: int, said: str) -> None:
    """Reserve and settle with a limit on the size of files, until the ledger says that it cannot go on."""
    with open_ledger(Path(folder)) as ledger:
        ledger.declare(run_id="run", schedule=[event(steps=500, noise=1000.0)], patients=["p1"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, bytes_per_file))
        try:
            for round_index in range(500):
                key = {"run_id": "run", "round_index": round_index, "task_hash": TASK}
                ledger.settle(ledger.reserve(**key, events=[event(noise=1000.0)]), os.urandom(4096))
        except LedgerError as error:
            Path(said).write_text(str(error))


def _serve() -> None:
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        if verb == "start":
            process = os.fork()
            if process == 0:
                code = 1
                try:
                    globals()[arguments[0]](*arguments[1:])
                    code = 0
                finally:
                    if code:
                        traceback.print_exc()
                    os._exit(code)
            answer = process
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(arguments[0], 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
