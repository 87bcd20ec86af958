"""A backbone that comes with the declaration: used as it is declared, refused otherwise, and no harm to the next one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mammo_fed.client.rounds.site import Site
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import DataError, WeightsError
from mammo_fed.federation.public_start import make_extractor, make_public_start
from mammo_fed.server.run import declare_run, share_of
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import site_file

PRETRAINED = (
    "model=pooled",
    "model.weights=none",
    "model.input_size=32",
    "model.hidden=8",
    "model.components=0",
    "privacy=dp_sgd",
    "privacy.unit=image",
    "privacy.mean_fraction=0",
    "data.images_train=64",
    "synthesis.use=[whiten,pretrain]",
    "synthesis.pretrain_scope=network",
    "federation.num_sites=2",
)


@pytest.fixture(scope="module")
def settings(small):
    return compose_settings([*small, *PRETRAINED]).settings


@pytest.fixture(scope="module")
def declared(settings, tmp_path_factory):
    """The server's declaration and what comes with it; its cache is not the sites'."""
    store = ArrayCache(tmp_path_factory.mktemp("server"))
    extractor = make_extractor(settings, cache=store)
    start = make_public_start(settings, extractor, cache=store)
    return declare_run(settings, extractor, start, run_id="run1"), start.payload.flatten()


@pytest.fixture
def site(settings, tmp_path):
    store = ArrayCache(tmp_path / "cache")
    return Site(site_file(settings, load_pool(settings.data, share_of(settings), cache=store), 0, folder=tmp_path, cache=store))


def test_a_declared_network_is_taken(site, declared):
    declaration, payload = declared
    assert declaration.network_size > 1000
    assert site.declare(declaration, payload).events


def test_a_network_that_was_changed_is_refused_and_the_right_one_is_taken_afterwards(site, declared):
    declaration, payload = declared
    changed = payload.copy()
    changed[-declaration.network_size :] *= np.float32(1.5)
    with pytest.raises(WeightsError, match="weights differ from the server's"):
        site.declare(declaration, changed)
    assert site.declare(declaration, payload).events


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_network_of_another_size_is_refused(site, declared, missing):
    declaration, payload = declared
    short = replace(declaration, network_size=declaration.network_size - missing)
    with pytest.raises(DataError, match="the network sent has"):
        site.declare(short, payload[:-missing])
