"""A masked sum with a site of another version of the protocol: left out and named, before anything is charged."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict

from mammo_fed.federation.protocol.messages import PROTOCOL
from mammo_fed.federation.protocol.task import PROTOCOL_VERSION
from mammo_fed.federation.secure_aggregation.double_masks import Terms
from mammo_fed.server.rounds.secure_sum import SecureSum

LATER = PROTOCOL_VERSION + 1


def test_version_of_a_masked_sums_site_is_named_and_the_task_is_sent_to_nobody(caplog):
    def exchange(contents: Mapping[str, RecordDict], kind: str) -> Mapping[str, RecordDict]:
        return {site: RecordDict({PROTOCOL: ConfigRecord({"version": LATER})}) for site in contents}

    terms = Terms(run_id="run1", round_index=1, min_survivors=2, colluders=0)
    total = SecureSum(exchange=exchange, accept=lambda *_: None, terms=terms)
    total.run(("site-1", "site-2"), {})
    assert (total.sent, total.total) == ((), None)
    assert total.failure == "0 sites sent keys, fewer than min_survivors=2"
    for site in ("site-1", "site-2"):
        said = f"the other side speaks version {LATER} of the protocol and this one version {PROTOCOL_VERSION}"
        assert f"{site}: version: {said}" in caplog.text
