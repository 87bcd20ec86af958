"""What leaves a site does not tell one study's server who is in another study, and says since when its cap holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mammo_fed.client.policy import SiteFile
from mammo_fed.client.rounds.replies import reply_from_bytes, reply_to_bytes
from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import MammoFedError, PolicyRefused
from mammo_fed.federation.protocol.messages import PRIVACY, pack_reply
from mammo_fed.federation.protocol.replies import Accepted, PricedReply, Update
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger import ledger as ledger_module
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.ledger.report import export_ledger
from mammo_fed.server.run import declare_run, share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file

DIMS = 20
DELTA = 1e-4
OF_ACCOUNT = ("epsilon_account", "patient_epsilon_account", "budget_left")
ELSEWHERE = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=9.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=16,
)


@pytest.fixture(scope="module")
def asked(small, cache) -> tuple[Declaration, np.ndarray, Callable[[Path], SiteFile]]:
    """A declaration with noise that can be drawn again, what comes with it, and a hospital's file by its folder."""
    settings, store = compose_settings([*small, "privacy.noise_seed=5"]).settings, ArrayCache(cache)
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=store)
    start = make_public_start(settings, extractor, cache=store)
    pool = load_pool(settings.data, share_of(settings), cache=store)
    declaration = replace(declare_run(settings, extractor, start, run_id="run1"), target_epsilon=2.0)

    def described(folder: Path) -> SiteFile:
        """A hospital with two studies, whose policy publishes nothing of its accounts."""
        file = site_file(settings, pool, 2, folder=folder, cache=store)
        return replace(file, policy=replace(file.policy, max_epsilon=6.0, account="study-a", public_account=False))

    return declaration, start.payload.flatten(), described


@pytest.fixture
def described(asked, tmp_path) -> SiteFile:
    return asked[2](tmp_path)


def task(index: int, run_id: str = "run1") -> RoundTask:
    return RoundTask(
        run_id=run_id,
        round_index=index,
        kind="train" if index else "mean",
        learning_rate=20.0,
        weight_decay=0.0,
        optimizer="sgd",
        label_smoothing=0.0,
        proximal=0.0,
    )


def answer(site: Site, index: int, declaration: Declaration) -> Update:
    size = declaration.head.num_parameters if index else DIMS
    reply = site.round(task(index), np.zeros(DIMS, np.float32), np.zeros(size, np.float32))
    assert isinstance(reply, Update)
    return reply


def other_study(file: SiteFile, *, patients: list[str], steps: int = 1) -> None:
    """A run of the site's other study, charged to an account of its own in the same ledger."""
    budget = Budget(max_epsilon=file.policy.max_epsilon, delta=file.policy.delta)
    with Ledger.open(Path(file.ledger), site=file.site, budget=budget, filter="gdp", adopt=True) as ledger:
        schedule = [replace(ELSEWHERE, steps=steps)]
        ledger.declare(run_id="elsewhere", schedule=schedule, patients=patients, account="study-b")
        ledger.reserve(run_id="elsewhere", round_index=0, task_hash="task", events=schedule)


def seen(reply: PricedReply) -> dict[str, Any]:
    """A reply as it crosses the network, the seal of the ledger's head left out: its key is drawn."""
    content = pack_reply(reply)
    fields = {name: value for name, value in content.config_records[PRIVACY].items() if name != "ledger-head"}
    arrays = {name: record["flat"].numpy().tobytes() for name, record in content.array_records.items()}
    return fields | {
        "entries": reply.ledger_head.partition(":")[0],
        "arrays": arrays,
    }


def world(asked, folder: Path, *, enrolled: bool) -> list[dict[str, Any]]:
    """All that study A's server sees, with one patient of A enrolled in study B, or nobody."""
    declaration, payload, described = asked
    file = described(folder)
    mine = sorted(set(Site(file).cohort.patients.tolist()))
    site = Site(file)
    told = []
    other_study(file, patients=["somebody else", *(mine[:1] if enrolled else [])])
    told.append(seen(site.declare(declaration, payload)))
    told += [seen(answer(site, index, declaration)) for index in range(3)]
    # A process that starts again, a run that is declared again, and a reply that is sent again.
    again = Site(file)
    told += [seen(answer(again, 2, declaration)), seen(again.declare(declaration, payload))]
    return told


def test_cap_account_replies_are_the_same_bytes_whoever_is_in_another_study(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "_now", lambda: "2026-02-01T09:30:00+00:00")
    worlds = [world(asked, tmp_path / str(enrolled), enrolled=enrolled) for enrolled in (False, True)]
    assert worlds[0] == worlds[1]
    assert len(worlds[0]) == 6


def test_cap_account_figures_leave_where_the_policy_publishes_them_and_then_they_tell(asked, described):
    declaration, payload, _ = asked
    mine = Site(described).cohort.patients.tolist()
    other_study(described, patients=mine[:1])
    site = Site(replace(described, policy=replace(described.policy, public_account=True)))
    reply = site.declare(declaration, payload)
    assert reply.epsilon == 0 < reply.epsilon_account
    assert reply.budget_left < reply.cap_epsilon == 6.0


def test_cap_account_figures_of_a_stored_reply_stay_where_the_policy_no_longer_publishes_them(asked, described):
    declaration, payload, _ = asked
    loose = Site(replace(described, policy=replace(described.policy, public_account=True)))
    loose.declare(declaration, payload)
    first = answer(loose, 0, declaration)
    again = answer(Site(described), 0, declaration)
    assert None not in [getattr(first, name) for name in OF_ACCOUNT]
    assert [getattr(again, name) for name in OF_ACCOUNT] == [None] * 3
    np.testing.assert_array_equal(first.parameters, again.parameters)


def test_cap_account_reply_without_figures_is_stored_and_read_back_as_it_is(asked, described):
    declaration, payload, _ = asked
    site = Site(described)
    site.declare(declaration, payload)
    reply = answer(site, 0, declaration)
    read = reply_from_bytes(reply_to_bytes(reply))
    assert isinstance(read, Update)
    assert seen(read) == seen(reply)


def test_cap_account_policy_publishes_nothing_unless_it_says_so(described):
    fields = {name: value for name, value in vars(described.policy).items() if name != "public_account"}
    assert type(described.policy)(**fields).public_account is False


def declared(site: Site, asked, run_id: str, **policy: object) -> Accepted:
    other = Site(replace(site.file, policy=replace(site.file.policy, **policy)))
    return other.declare(replace(asked[0], run_id=run_id), asked[1])


def raised(file: SiteFile, cap: float) -> None:
    budget = Budget(max_epsilon=file.policy.max_epsilon, delta=file.policy.delta)
    with Ledger.open(Path(file.ledger), site=file.site, budget=budget, filter="gdp", adopt=True) as ledger:
        ledger.raise_cap(max_epsilon=cap)


def test_cap_of_an_answer_says_since_when_it_holds_and_every_raise(asked, described):
    site = Site(described)
    first = declared(site, asked, "run1")
    with pytest.raises(PolicyRefused, match=f"promised 6 since {first.cap_since[:10]}"):
        declared(site, asked, "run2", max_epsilon=50.0)
    raised(described, 50.0)
    second = declared(site, asked, "run2", max_epsilon=50.0)
    (step,) = second.cap_raised
    assert (first.cap_epsilon, first.cap_raised) == (6.0, ())
    assert (second.cap_epsilon, second.cap_since) == (50.0, step.at)
    assert (step.from_epsilon, step.to_epsilon) == (6.0, 50.0)


def test_cap_raised_in_the_policy_alone_stops_a_run_that_goes_on(asked, described):
    declaration, payload, _ = asked
    Site(described).declare(declaration, payload)
    looser = Site(replace(described, policy=replace(described.policy, max_epsilon=50.0)))
    with pytest.raises(PolicyRefused, match="promised 6 since"):
        answer(looser, 0, declaration)
    assert [entry.kind for entry in export_ledger(Path(described.ledger))] == ["opened", "declared"]


@pytest.mark.parametrize("model", [{"tap": -1}, {"tap": 99}, {"pooling": "covariance", "tap": None}], ids=str)
def test_cap_is_not_promised_by_a_run_whose_model_cannot_be(asked, described, model):
    declaration, payload, _ = asked
    impossible = replace(declaration, model=replace(declaration.model, **model))
    with pytest.raises(MammoFedError):
        Site(described).declare(impossible, payload)
    assert not Path(described.ledger).exists() or [e.kind for e in export_ledger(Path(described.ledger))] == ["opened"]
