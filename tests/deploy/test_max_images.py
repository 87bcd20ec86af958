"""A site declares more images than the coordinator registered it for: real processes over TLS, and the record of the run."""

from __future__ import annotations

import pytest
from real_federation import SMALL_RUN, real_federation

from mammo_fed.server.operations.cli import main as flower_server

INJECTED = ("privacy.noise_seed=5", "federation.rounds=1", "federation.num_sites=2", "federation.min_nodes=2")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_max_images_keep_a_site_out_that_declares_more_and_the_others_go_on(tmp_path, cache):
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        key = federation.site("site-2") / "keys" / "site-2.pub"
        assert flower_server(["register", str(federation.fed), str(key), "--max-images", "3"]) == 0
        federation.start_server(*SMALL_RUN, *INJECTED)
        for name in federation.sites:
            federation.start_client(name)
        assert federation.wait(500) == 0, federation.tail()
        record = federation.record
        said = federation.said()
    by_name = {site.site: site for site in record.privacy.sites}
    assert [(each.round, each.reason) for each in by_name["site-2"].rejected] == [(-1, "weight")]
    assert by_name["site-2"].epsilon == 0.0
    assert by_name["site-1"].rounds == 2
    assert [weight.site for weight in record.federation.weights] == ["site-1"]
    assert "images and is registered for 3" in said
    assert "--max-images" in said
