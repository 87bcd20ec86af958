"""One task, charged once: the ledger's steps come in their order, and nothing leaves or stays where one of them fails."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mammo_fed
from mammo_fed.client.charging import Charge, charged_once
from mammo_fed.errors import LedgerError, PolicyRefused
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.ledger import Budget, Ledger

EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=20.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=4,
)
CHARGE = Charge(run_id="run1", round_index=1, task_hash="task", events=(EVENT,))


class Watched:
    """A ledger that writes down what it is asked, and fails where it is told to."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.steps: list[str] = []
        self.failing = ""

    def _do(self, step: str, *args: object, **named: object) -> object:
        self.steps.append(step)
        if step == self.failing:
            raise LedgerError("the disk is full")
        return getattr(self._ledger, step)(*args, **named)

    def stored_reply(self, **named):
        return self._do("stored_reply", **named)

    def reserve(self, **named):
        return self._do("reserve", **named)

    def settle(self, *args):
        return self._do("settle", *args)

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self._ledger.entries()]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Watched]:
    with Ledger.open(tmp_path / "ledger", site="site-1", budget=Budget(max_epsilon=6.0, delta=1e-4), filter="gdp") as opened:
        opened.declare(run_id="run1", schedule=(EVENT, EVENT), patients=["p"])
        yield Watched(opened)


class Training:
    """Training that changes its state in place, as optimizers do, and can fail after it did."""

    def __init__(self, ledger: Watched) -> None:
        self._ledger = ledger
        self.seen: list[float] = []
        self.failing = False

    def __call__(self, state):
        self._ledger.steps.append("train")
        if state is not None:
            self.seen.append(float(state["moments"][0]))
            state["moments"].add_(1.0)
            state["steps"] = len(self.seen)
        if self.failing:
            raise ValueError("training failed")
        return f"reply {len(self._ledger.steps)}".encode()


@pytest.fixture
def train(ledger: Watched) -> Training:
    return Training(ledger)


@pytest.fixture
def state():
    return {"moments": torch.zeros(2)}


def failed() -> bytes:
    return b"failed"


def test_ledger_is_asked_reserved_and_settled_around_training_in_this_order(ledger, train):
    reply = charged_once(ledger, CHARGE, train=train, failed=None, state=None)
    assert ledger.steps == ["stored_reply", "reserve", "train", "settle"]
    assert reply == ledger.stored_reply(run_id="run1", round_index=1, task_hash="task")


def test_ledger_gives_a_task_that_was_answered_its_stored_reply_and_does_nothing_else(ledger, train, state):
    first = charged_once(ledger, CHARGE, train=train, failed=failed, state=state)
    ledger.steps.clear()
    assert charged_once(ledger, CHARGE, train=train, failed=failed, state=state) == first
    assert ledger.steps == ["stored_reply"]
    assert state["moments"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("step", ["stored_reply", "reserve"])
def test_ledger_that_fails_before_training_leaves_patients_alone(ledger, train, state, step):
    ledger.failing = step
    with pytest.raises(LedgerError):
        charged_once(ledger, CHARGE, train=train, failed=failed, state=state)
    assert ledger.steps[-1] == step
    assert train.seen == []


def test_ledger_that_refuses_events_leaves_patients_alone(ledger, train):
    undeclared = Charge(run_id="run1", round_index=1, task_hash="task", events=(EVENT, EVENT, EVENT))
    with pytest.raises(PolicyRefused):
        charged_once(ledger, undeclared, train=train, failed=failed, state=None)
    assert "train" not in ledger.steps


@pytest.mark.parametrize("end", [None, failed], ids=["left open", "settled as failed"])
def test_settle_failure_returns_nothing_and_keeps_nothing(ledger, train, state, end):
    ledger.failing, returned = "settle", None
    with pytest.raises(LedgerError):
        returned = charged_once(ledger, CHARGE, train=train, failed=end, state=state)
    assert returned is None
    assert ledger.steps == ["stored_reply", "reserve", "train", "settle"]
    assert state["moments"].tolist() == [0.0, 0.0]
    assert set(state) == {"moments"}


def test_settle_failure_lets_the_same_task_train_again_from_where_it_started(ledger, train, state):
    ledger.failing = "settle"
    with pytest.raises(LedgerError):
        charged_once(ledger, CHARGE, train=train, failed=failed, state=state)
    ledger.failing = ""
    charged_once(ledger, CHARGE, train=train, failed=failed, state=state)
    assert train.seen == [0.0, 0.0]
    assert state == {"moments": state["moments"], "steps": 2}
    assert state["moments"].tolist() == [1.0, 1.0]
    assert ledger.kinds() == ["opened", "declared", "reserved", "resumed", "settled"]


def test_settle_failure_of_a_failed_training_is_what_is_raised(ledger, train, state):
    train.failing, ledger.failing = True, "settle"
    with pytest.raises(LedgerError):
        charged_once(ledger, CHARGE, train=train, failed=failed, state=state)
    assert state["moments"].tolist() == [0.0, 0.0]


def test_ledger_settles_a_failed_training_so_that_the_failure_is_told_once(ledger, train, state):
    train.failing = True
    with pytest.raises(ValueError, match="training failed"):
        charged_once(ledger, CHARGE, train=train, failed=failed, state=state)
    assert ledger.kinds()[-2:] == ["reserved", "settled"]
    assert state["moments"].tolist() == [0.0, 0.0]
    train.failing = False
    assert charged_once(ledger, CHARGE, train=train, failed=failed, state=state) == b"failed"
    assert len(train.seen) == 1


def test_ledger_s_reply_for_a_failure_is_made_before_training_sees_a_patient(ledger, train):
    def made() -> bytes:
        ledger.steps.append("failed")
        return b"failed"

    charged_once(ledger, CHARGE, train=train, failed=made, state=None)
    assert ledger.steps == ["stored_reply", "reserve", "failed", "train", "settle"]


def test_ledger_keeps_the_reservation_of_a_training_that_may_go_on(ledger, train, state):
    train.failing = True
    with pytest.raises(ValueError, match="training failed"):
        charged_once(ledger, CHARGE, train=train, failed=None, state=state)
    assert "settle" not in ledger.steps
    train.failing = False
    charged_once(ledger, CHARGE, train=train, failed=None, state=state)
    assert ledger.kinds() == ["opened", "declared", "reserved", "resumed", "settled"]
    assert train.seen == [0.0, 0.0]


def test_ledger_is_reserved_and_settled_at_one_place_of_the_package():
    """Every training goes through the function that is tested here."""
    calls = []
    root = Path(mammo_fed.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if (root / "privacy" / "ledger") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("reserve", "settle"):
                calls.append((str(path.relative_to(root)), node.attr))
    assert calls == [("client/charging.py", "reserve"), ("client/charging.py", "settle")]
