"""Real processes of two protocol versions: who differs is named with both numbers, pays nothing, and nobody waits for it."""

from __future__ import annotations

import json

import pytest
from other_version import site_client
from real_federation import SMALL_RUN, RealFederation, real_federation

from mammo_fed.federation.protocol.task import PROTOCOL_VERSION

# Longer than the test may take: a wait for a site that will not answer would end it.
PATIENT = ("federation.round_timeout=3000", "federation.round_min_wait=3000")
LATER = PROTOCOL_VERSION + 1


def executor_log(federation: RealFederation, name: str) -> str:
    return (federation.site(name) / "private" / "executor.log").read_text(encoding="utf-8")


def charged(federation: RealFederation, name: str) -> bool:
    return any((federation.site(name) / "ledger").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_version_of_one_site_is_named_on_both_sides_and_the_others_train_without_it(tmp_path, cache):
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        federation.start_client("site-1", program=site_client(tmp_path, LATER))
        federation.start_client("site-2")
        federation.start_server(*SMALL_RUN, *PATIENT, "federation.num_sites=2", "federation.rounds=2")
        assert federation.wait(400) == 0, federation.tail()
        said = f"version (it speaks version {LATER} of the protocol, this server version {PROTOCOL_VERSION})"
        assert f"site-1 does not train: {said}" in federation.said()
        (apart,) = [site for site in federation.record.privacy.sites if site.site == "site-1"]
        assert [each.protocol_versions for each in apart.rejected] == [(LATER, PROTOCOL_VERSION)]
        assert (apart.epsilon, apart.refused) == (0.0, True)
        assert f"version: the other side speaks version {PROTOCOL_VERSION} of the protocol and this one version {LATER}" in (
            executor_log(federation, "site-1")
        )
        assert (charged(federation, "site-1"), charged(federation, "site-2")) == (False, True)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_version_of_every_site_ends_the_run_as_soon_as_they_have_said_so(tmp_path, cache):
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        for name in federation.sites:
            federation.start_client(name, program=site_client(tmp_path, LATER))
        federation.start_server(*SMALL_RUN, *PATIENT, "federation.num_sites=2", "federation.rounds=2")
        assert federation.wait(400) == 3, federation.tail()
        assert "every site refuses the run" in federation.said()
        assert f"speaks version {LATER} of the protocol, this server version {PROTOCOL_VERSION}" in federation.said()
        outcome = json.loads((federation.run_folder / "outcome.json").read_text(encoding="utf-8"))
        assert outcome["exit_code"] == 3
        assert not any(charged(federation, name) for name in federation.sites)
