"""What the server does with replies that no honest site sends, over the real grid and the real serialisation."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console

from mammo_fed.client.rounds.app import app
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import PrivacyRefused, RunFailed
from mammo_fed.federation.protocol.messages import PROTOCOL, pack_reply, read_reply, read_task, stamped
from mammo_fed.federation.protocol.replies import Refusal, Reply, Update
from mammo_fed.federation.protocol.task import PROTOCOL_VERSION
from mammo_fed.models.classifier import Classifier, read_classifier
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.report import show_ledger, verify_ledger
from mammo_fed.reporting.console import results_table
from mammo_fed.reporting.record.record import Record, Rejected, SitePrivacy, read_record
from mammo_fed.server.app import make_app
from mammo_fed.server.results.progress_lines import round_lines
from mammo_fed.server.run import Hooks, share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.in_process import run_in_process
from mammo_fed.simulations.launch import site_file

INJECTED = ("privacy.noise_seed=5", "federation.rounds=2")
HOSTILE = "site-4"
Tamper = Callable[[Reply, Message], Message | None]


class TamperedApp(ClientApp):
    """The real client app; what the hostile site answers is changed on its way out."""

    def __init__(self, tamper: Tamper, *, hostile: str, from_round: int) -> None:
        super().__init__()
        self._tamper, self._hostile, self._from_round = tamper, hostile, from_round

    def __call__(self, message: Message, context: Context) -> Message:
        honest = app(message, context)
        if message.metadata.message_type.endswith(".secure"):
            return honest
        reply = read_reply(honest.content)
        if reply.site != self._hostile or round_of(reply) < self._from_round:
            return honest
        return self._tamper(reply, message) or honest


def round_of(reply: Reply) -> int:
    return reply.round_index if isinstance(reply, Update) else -1


@dataclass(frozen=True)
class Federation:
    """A finished federation."""

    record: Record
    model: Classifier
    log: str
    warnings: str

    @property
    def hostile(self) -> SitePrivacy:
        return next(site for site in self.record.privacy.sites if site.site == HOSTILE)

    @property
    def honest(self) -> list[SitePrivacy]:
        # A site whose declaration cannot be read is named after its node.
        hostile = (HOSTILE, "node-")
        return [site for site in self.record.privacy.sites if not site.site.startswith(hostile)]


@pytest.fixture
def federate(small, training, cache, tmp_path, caplog):
    """`federate(tamper)`: four sites, one of which answers what `tamper` makes of its reply from some round on."""

    def run(
        tamper: Tamper,
        *overrides: str,
        hostile: str = HOSTILE,
        from_round: int = 0,
        hooks: Hooks | None = None,
        again: str = "",
    ) -> Federation:
        folder = tmp_path / again
        folder.mkdir(exist_ok=True)
        settings = compose_settings([*small, *training, *INJECTED, *overrides]).settings
        store = ArrayCache(cache)
        pool = load_pool(settings.data, share_of(settings), cache=store)
        sites = folder / "sites"
        sites.mkdir()
        for index in range(settings.federation.num_sites):
            described = site_file(settings, pool, index, folder=folder, cache=store)
            described.write(sites / f"site-{index + 1}.json")
        run_config = {
            "config-json": settings.to_json(),
            "run-folder": str(folder),
            "sites-folder": str(sites),
            "mode": "simulate",
        }
        caplog.set_level(logging.INFO)
        run_in_process(
            make_app(hooks or Hooks()),
            TamperedApp(tamper, hostile=hostile, from_round=from_round),
            num_sites=settings.federation.num_sites,
            run_config=run_config,
            workers=2,
            wire=True,
        )
        warnings = "\n".join(entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING)
        return Federation(read_record(folder), read_classifier(folder / "model.safetensors"), caplog.text, warnings)

    return run


def answer(reply: Reply, message: Message, **changed: object) -> Message:
    """The reply with some fields changed."""
    return Message(pack_reply(replace(reply, **changed)), reply_to=message)


def changing(**changed: object) -> Tamper:
    return lambda reply, message: answer(reply, message, **changed)


def refusing(reason: str) -> Tamper:
    def tamper(reply: Reply, message: Message) -> Message:
        refusal = Refusal(
            site=reply.site, public_images=reply.public_images, public_patients=reply.public_patients, reason=reason
        )
        return Message(pack_reply(refusal), reply_to=message)

    return tamper


def garbage(content: RecordDict) -> Tamper:
    return lambda reply, message: Message(content, reply_to=message)


def raising(reply: Reply, message: Message) -> Message:
    raise RuntimeError("Erika Mustermann is in row 3")


NOTHING = RecordDict({})
TWO_ARRAYS = stamped(
    RecordDict(
        {
            "arrays": ArrayRecord({"flat": Array(np.zeros(20, np.float32)), "more": Array(np.zeros(20, np.float32))}),
            "privacy": ConfigRecord({"site": HOSTILE}),
        }
    )
)


@pytest.fixture(scope="module")
def left_out(succeed, training):
    """The head and feature mean of a run in which the hostile site takes no part."""
    return succeed(*training, *INJECTED, "federation.site_budgets=[6,6,6,1]").model


@pytest.fixture(scope="module")
def usual(succeed, training):
    """The head and feature mean of a run in which every site is honest."""
    return succeed(*training, *INJECTED).model


def test_an_honest_site_is_believed(federate, usual):
    federation = federate(lambda reply, message: None)
    assert [site.rounds for site in federation.record.privacy.sites] == [3, 3, 3, 3]
    np.testing.assert_array_equal(federation.model.parameters, usual["head"])
    assert federation.warnings == ""


@pytest.mark.parametrize(
    ("arrays", "said", "reason"),
    [
        (lambda old: np.full_like(old, np.nan), "that is not finite", "not_finite"),
        (lambda old: np.where(np.arange(len(old)) == 3, np.inf, old).astype(np.float32), "that is not finite", "not_finite"),
        (lambda old: old[:-1], "of the wrong shape", "shape"),
        (lambda old: np.zeros(0, np.float32), "of the wrong shape", "shape"),
    ],
    ids=["nan", "infinite", "short", "empty"],
)
def test_an_update_that_cannot_be_averaged_is_left_out_and_charged_all_the_same(federate, left_out, arrays, said, reason):
    federation = federate(lambda reply, message: answer(reply, message, parameters=arrays(reply.parameters)))
    assert f"{HOSTILE} sends an update {said}" in federation.log
    assert federation.hostile.rejected == tuple(Rejected(round=index, reason=reason) for index in (0, 1, 2))
    assert [site.rejected for site in federation.honest] == [()] * 3
    np.testing.assert_array_equal(federation.model.parameters, left_out["head"])
    np.testing.assert_array_equal(federation.model.feature_mean, left_out["centre"])
    # What it reports as spent may well be spent.
    assert federation.hostile.rounds == 3
    assert federation.hostile.epsilon == federation.honest[0].epsilon


@pytest.mark.parametrize(
    "changed",
    [{"run_id": "another"}, {"round_index": 7}, {"task_hash": "0" * 64}],
    ids=["run", "round", "task"],
)
def test_an_answer_to_another_task_is_left_out(federate, left_out, changed):
    federation = federate(changing(**changed))
    assert f"{HOSTILE} answers another task than round 1; its update is left out" in federation.log
    np.testing.assert_array_equal(federation.model.parameters, left_out["head"])


def test_a_masked_update_beside_one_in_plaintext_is_left_out(federate, left_out):
    federation = federate(lambda reply, message: answer(reply, message, masked=np.ones(4, np.uint64)))
    assert f"{HOSTILE} sends a masked update beside one in plaintext; its update is left out" in federation.log
    np.testing.assert_array_equal(federation.model.parameters, left_out["head"])


@pytest.mark.parametrize("content", [NOTHING, TWO_ARRAYS], ids=["nothing", "two arrays"])
def test_garbage_is_left_out_with_a_word_about_what_is_wrong(federate, left_out, content):
    federation = federate(garbage(content))
    assert "sends a reply that cannot be read" in federation.log
    np.testing.assert_array_equal(federation.model.parameters, left_out["head"])
    assert federation.hostile.rounds == 0
    assert federation.hostile.rejected == tuple(Rejected(round=index, reason="unreadable") for index in (0, 1, 2))


def test_a_site_that_fails_is_left_out_and_what_it_says_goes_no_further(federate, left_out):
    federation = federate(raising)
    assert "fails with code" in federation.log
    np.testing.assert_array_equal(federation.model.parameters, left_out["head"])
    assert "Erika" not in federation.log


def test_a_site_that_nobody_knows_is_left_out(federate, left_out):
    federation = federate(changing(site="site-9"))
    assert "a reply names the unknown site" in federation.log
    assert "\x1b" not in federation.log
    np.testing.assert_array_equal(federation.model.parameters, left_out["head"])


def test_a_refusal_in_the_middle_of_a_run_ends_the_sites_part_in_it(federate):
    federation = federate(refusing("ledger"), from_round=2)
    assert f"{HOSTILE} refuses round 2: ledger" in federation.log
    assert (federation.hostile.refused, federation.hostile.rounds) == (True, 2)
    assert [site.rounds for site in federation.honest] == [3, 3, 3]


def of_version(version: int) -> Tamper:
    """The site's answers come from a program of another version; version 1 had no record of it."""

    def tamper(reply: Reply, message: Message) -> Message:
        content = pack_reply(reply)
        del content[PROTOCOL]
        if version > 1:
            content[PROTOCOL] = ConfigRecord({"version": version})
            del content["privacy"]
        return Message(content, reply_to=message)

    return tamper


@pytest.mark.parametrize("version", [1, PROTOCOL_VERSION + 1])
def test_version_of_a_site_that_is_not_the_servers_keeps_it_out_with_both_numbers(federate, tmp_path, version):
    federation = federate(of_version(version), from_round=-1)
    said = f"version (it speaks version {version} of the protocol, this server version {PROTOCOL_VERSION})"
    assert f"refuses the run: {said}" in federation.warnings
    (site,) = [site for site in federation.record.privacy.sites if site.refused]
    assert (site.rounds, site.epsilon, site.unanswered) == (0, 0.0, ())
    assert site.rejected == (Rejected(round=-1, reason="version", protocol_versions=(version, PROTOCOL_VERSION)),)
    assert federation.record.privacy.warnings == (
        f"{site.site}: it was kept out of the run: it spoke version {version} of the protocol, and the server version "
        f"{PROTOCOL_VERSION}.",
    )
    assert [other.rounds for other in federation.record.privacy.sites if not other.refused] == [3, 3, 3]
    # Nothing is known of its size, and nothing is made up.
    assert len(federation.record.data.sites) == 3


def test_version_that_changes_in_the_middle_of_a_run_ends_the_sites_part_and_understates_nothing(federate):
    """The site may have answered the round before its software was changed."""
    federation = federate(of_version(PROTOCOL_VERSION + 1), from_round=2)
    assert (
        f"{HOSTILE} refuses round 2: version (it speaks version {PROTOCOL_VERSION + 1} of the protocol" in federation.warnings
    )
    assert (federation.hostile.refused, federation.hostile.unanswered) == (True, (2,))
    assert charged(federation, federation.hostile) == charged(federation, federation.honest[0])
    assert [site.rounds for site in federation.honest] == [3, 3, 3]


def charged(federation: Federation, site: SitePrivacy) -> tuple[float, tuple[float, ...]]:
    return site.epsilon, site.epsilon_after_round


def lost(reply: Reply, message: Message) -> Message:
    return Message(Error(code=1, reason="lost"), reply_to=message)


@pytest.mark.parametrize("tamper", [garbage(NOTHING), raising, lost], ids=["unreadable", "failed", "lost"])
def test_a_record_charges_a_round_whose_reply_was_lost_or_cannot_be_read(federate, tmp_path, tamper):
    federation = federate(tamper, from_round=2)
    assert (federation.hostile.rounds, federation.hostile.unanswered) == (2, (2,))
    assert charged(federation, federation.hostile) == charged(federation, federation.honest[0])
    own = show_ledger(tmp_path / "sites" / HOSTILE / "ledger", delta=1e-4).accounts[0].epsilon
    assert federation.hostile.epsilon >= own
    assert federation.hostile.epsilon_account >= own
    squares = gaussian_mu(epsilon=6.0, delta=1e-4) ** 2 - gaussian_mu(epsilon=own, delta=1e-4) ** 2
    assert federation.hostile.budget_left <= gaussian_epsilon(mu=math.sqrt(squares), delta=1e-4) + 1e-4
    # What cannot be read is named as well; an error is nothing that a site sent.
    named = tuple(
        f"{HOSTILE}: its answer was left out in round 2: what it sent could not be read." for _ in federation.hostile.rejected
    )
    assert len(named) == ("cannot be read" in federation.warnings)
    assert federation.record.privacy.warnings == (
        f"{HOSTILE}: no readable reply came in round 2; it is charged, as the reply may be in other hands.",
        *named,
    )
    assert f"{HOSTILE}: no readable reply came in round 2" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sends no readable reply in round 2; the round is charged all the same" in federation.warnings


def test_a_record_does_not_take_a_lost_task_for_a_lie(federate):
    """The reply of round 1 is lost; the site's figures of the later rounds are its own and no mismatch."""
    federation = federate(lambda reply, message: lost(reply, message) if round_of(reply) == 1 else None)
    assert (federation.hostile.unanswered, federation.hostile.mismatches) == ((1,), ())
    skipping = federate(
        lambda reply, message: (
            lost(reply, message) if round_of(reply) == 1 else answer(reply, message, epsilon=reply.epsilon * 0.9)
        ),
        again="skipping",
    )
    assert skipping.hostile.mismatches == (0,)


def test_a_record_holds_the_larger_of_the_servers_and_the_sites_figure_and_warns_of_the_difference(federate, tmp_path):
    federation = federate(lambda reply, message: answer(reply, message, epsilon=reply.epsilon + 1), from_round=1)
    assert federation.hostile.epsilon == pytest.approx(federation.honest[0].epsilon + 1)
    assert federation.hostile.mismatches == (1, 2)
    assert federation.record.privacy.guaranteed_epsilon == federation.hostile.epsilon
    shown = Console(width=100, record=True, file=io.StringIO())
    shown.print(results_table(federation.record))
    assert f"WARNING: {HOSTILE}: its own epsilon is not the server's after rounds 1, 2" in shown.export_text()


def test_a_record_names_where_every_sites_ledger_stood(federate, tmp_path):
    federation = federate(lambda reply, message: None)
    for site in federation.record.privacy.sites:
        assert verify_ledger(tmp_path / "sites" / site.site / "ledger", reported=site.ledger_head)
        assert int(site.ledger_head.split(":")[0]) >= 5


def test_a_site_whose_own_figure_differs_is_named_with_the_round_and_the_servers_figure_counts(federate):
    seen: dict[int, list[int]] = {}
    hooks = Hooks(round=lambda index, rounds, budget: seen.update({index: list(budget.sites[HOSTILE].mismatches)}))
    federation = federate(lambda reply, message: answer(reply, message, epsilon=reply.epsilon / 2), from_round=1, hooks=hooks)
    assert seen == {-1: [], 0: [], 1: [1], 2: [1, 2]}
    assert federation.hostile.epsilon == federation.honest[0].epsilon


def test_a_run_whose_every_site_talks_nonsense_in_a_round_fails(federate):
    with pytest.raises(RunFailed, match="round 0: 0 of 1 sites replied with an update in 3 tries"):
        federate(garbage(NOTHING), "federation.site_budgets=[1,1,1,6]")


def test_a_run_whose_last_site_refuses_on_the_way_is_refused(federate):
    with pytest.raises(PrivacyRefused, match="every site refuses round 1"):
        federate(
            refusing("budget"),
            "federation.site_budgets=[1,1,1,6]",
            from_round=1,
        )


def test_a_second_reply_under_one_name_is_left_out(federate):
    federation = federate(changing(site="site-3"))
    assert "another node answers in the name of site-3; its reply is left out" in federation.log
    assert federation.hostile.rounds == 0


def test_a_site_cannot_speak_in_the_name_of_another_however_fast_it_is(federate):
    def as_site_3(reply: Reply, message: Message) -> Message:
        return answer(reply, message, site="site-3", parameters=np.full_like(reply.parameters, 1e6))

    federation = federate(as_site_3, hostile="site-1", from_round=1)
    assert np.abs(federation.model.parameters).max() < 1e3


def test_events_that_were_not_declared_are_noticed(federate):
    def quieter(reply: Reply, message: Message) -> Message:
        events = tuple(replace(event, noise_multiplier=10 * event.noise_multiplier) for event in reply.events)
        spent.extend(events)
        return answer(reply, message, events=events, epsilon=epsilon(spent, delta=1e-4, accountant="pld"))

    spent: list[PrivacyEvent] = []
    federation = federate(quieter)
    assert federation.hostile.epsilon == federation.honest[0].epsilon or HOSTILE in federation.warnings


def test_a_weight_that_changes_on_the_way_gives_no_more_say(federate, usual, left_out):
    federation = federate(changing(public_images=10**9), from_round=1)
    honest = any(np.array_equal(federation.model.parameters, model["head"]) for model in (usual, left_out))
    assert honest or HOSTILE in federation.warnings


OTHER_UNIT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=1.0,
    steps=1,
    sample_rate=1.0,
    unit="image",
    clipping_norm=1.0,
    max_images_per_patient=1,
)


@pytest.mark.parametrize(
    ("changed", "from_round"),
    [
        ({"epsilon": math.nan}, 1),
        ({"epsilon": -1.0}, 1),
        ({"events": ()}, 1),
        ({"events": (OTHER_UNIT,)}, 1),
        ({"epsilon_account": math.nan}, 1),
        ({"epsilon_account": -1.0}, 1),
        ({"budget_left": math.nan}, 1),
        ({"patients": -1}, -1),
        ({"malignant_fraction": 7.0}, -1),
        ({"malignant_fraction": math.nan}, -1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else f"from {value}",
)
def test_no_reply_of_one_site_ends_the_run_of_the_others(federate, changed, from_round):
    federation = federate(changing(**changed), from_round=from_round)
    assert [site.rounds for site in federation.honest] == [3, 3, 3]


@pytest.mark.parametrize(
    "changed", [{"site": "site-4\x1b[2J\nall is well"}, {"ledger_head": "1:\x1b[2J\nall is well"}], ids=list
)
def test_what_a_site_calls_itself_cannot_write_lines_or_escapes_into_the_log(federate, changed):
    federation = federate(changing(**changed), from_round=-1)
    assert "\x1b" not in federation.log
    assert "\nall is well" not in federation.log


def test_relation_of_hostile_sites_to_all_that_too_few_replies_break_stops_the_run_and_is_named(federate):
    krum = ("federation.strategy=Krum", "federation.num_sites=3", "federation.max_failed_rounds=1")
    with pytest.raises(RunFailed, match=r"strategy=Krum with federation\.num_malicious=0 needs 3"):
        federate(lost, *krum, hostile="site-3", from_round=1)


def declaring(images: int) -> Tamper:
    """From the declaration on the site is as large as it says, and divides by that, as an honest one would."""

    def tamper(reply: Reply, message: Message) -> Message:
        sizes = {"public_images": images, "public_patients": images}
        if not isinstance(reply, Update) or len(reply.masked):
            return answer(reply, message, **sizes)
        sent = read_task(message)[2]
        shrunk = sent + (reply.parameters - sent) * np.float32(reply.public_images / images)
        return answer(reply, message, **sizes, parameters=shrunk)

    return tamper


@pytest.mark.parametrize("strategy", ["auto", "FedAvg"])
def test_a_false_weight_is_named_and_silences_nobody(federate, strategy):
    lines: list[str] = []
    hooks = Hooks(round=lambda index, rounds, budget: lines.extend(round_lines(index, rounds, budget)))
    found = federate(declaring(10**6), f"federation.strategy={strategy}", from_round=-1, hooks=hooks)
    weights = {weight.site: weight for weight in found.record.federation.weights}
    assert [site for site, weight in weights.items() if weight.outsized] == [HOSTILE]
    assert weights[HOSTILE].images == 10**6
    assert weights[HOSTILE].share <= 0.6 + 1e-6
    assert any(f"{HOSTILE} declares 1,000,000 images, more than 4 times the median of" in line for line in lines)
    assert f"{HOSTILE} declares 1,000,000 images" in found.warnings
    assert any("1,000,000" in warning for warning in found.record.privacy.warnings)


def test_a_false_weight_under_masks_keeps_the_site_out(federate):
    found = federate(declaring(10**6), "federation.secure.use=masks", from_round=-1)
    assert [(each.round, each.reason) for each in found.hostile.rejected] == [(0, "weight")]
    assert found.hostile.epsilon == 0.0
    assert [site.rounds for site in found.honest] == [3, 3, 3]
    assert "more than federation.max_weight_share=0.75" in found.warnings


def test_a_site_that_points_against_the_others_is_in_the_record_where_it_is_counted(federate):
    def turned(reply: Reply, message: Message) -> Message:
        sent = read_task(message)[2]
        return answer(reply, message, parameters=(2 * sent - reply.parameters).astype(np.float32))

    strong = ("privacy.target_epsilon=200", "data.images_train=400")
    counted = federate(turned, "federation.strategy=FedAvg", *strong, again="counted")
    weights = {weight.site: weight for weight in counted.record.federation.weights}
    assert 0 in weights[HOSTILE].against
    assert all(not weight.against for site, weight in weights.items() if site != HOSTILE)
    assert not counted.hostile.rejected
    assert any("pointed against" in warning and "counted" in warning for warning in counted.record.privacy.warnings)
    left_out = federate(turned, *strong, again="left out")
    assert (0, "direction") in [(each.round, each.reason) for each in left_out.hostile.rejected]
    assert left_out.record.federation.strategy == "FedAgree"
