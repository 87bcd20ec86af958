"""Caps of ledgers that carry over between simulations are promises, as at a real site: smaller holds, larger is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import PrivacyRefused
from mammo_fed.server.run import share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file
from mammo_fed.simulations.persistent_ledgers import MANIFEST_NAME, site_caps

SMALL = (
    "data.images_train=96",
    "data.images_test=48",
    "data.images_external=24",
    "data.image_size=64",
    "federation.num_sites=2",
)


@pytest.fixture
def caps(cache, tmp_path) -> Callable[..., tuple[float, ...]]:
    """`caps("federation.site_budgets=[6,6]")`: what a run with these settings may cost at each site, all runs together."""

    def of(*overrides: str) -> tuple[float, ...]:
        settings = compose_settings([*SMALL, f"privacy.ledger={tmp_path / 'ledgers'}", *overrides]).settings
        pool = load_pool(settings.data, share_of(settings), cache=ArrayCache(cache))
        found = site_caps(settings, pool)
        described = [site_file(settings, pool, index, folder=tmp_path, cache=ArrayCache(cache)) for index in range(2)]
        assert tuple(file.policy.max_epsilon for file in described) == found
        return found

    return of


def test_cap_of_a_simulations_ledgers_is_lowered_for_good_and_never_raised(caps, tmp_path):
    assert caps("federation.site_budgets=[6,6]") == (6.0, 6.0)
    assert caps("federation.site_budgets=[6,2]") == (6.0, 2.0)
    assert json.loads((tmp_path / "ledgers" / MANIFEST_NAME).read_text())["caps"] == [6.0, 2.0]
    assert caps("privacy.target_epsilon=5") == (6.0, 2.0)
    with pytest.raises(PrivacyRefused, match=r"must not loosen the caps \[6\.0, 2\.0\].*not raised in a simulation"):
        caps("federation.site_budgets=[6,3]")
    assert caps("federation.site_budgets=[1,1]") == (1.0, 1.0)


def test_cap_without_end_of_a_simulations_ledgers_can_be_lowered(caps):
    assert caps("privacy.target_epsilon=inf") == (math.inf, math.inf)
    assert caps("federation.site_budgets=[inf,4]") == (math.inf, 4.0)
    with pytest.raises(PrivacyRefused, match="must not loosen the caps"):
        caps("federation.site_budgets=[inf,inf]")
