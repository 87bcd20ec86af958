"""What the server makes of the synthetic set is made once: a head that was pretrained before is found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import mammo_fed.federation.public_start
from mammo_fed.data.cache import ArrayCache
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.settings.compose import compose_settings


def head(settings, store: ArrayCache) -> np.ndarray:
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=store)
    return make_public_start(settings, extractor, cache=store).parameters


def test_a_pretrained_head_is_kept_and_another_seed_or_norm_has_its_own(small, cache, monkeypatch):
    settings = compose_settings([*small, "synthesis.use=[whiten,pretrain]"]).settings
    store = ArrayCache(cache)
    first = head(settings, store)
    assert np.linalg.norm(first) > 0
    other = head(replace(settings, seed=settings.seed + 1), store)
    assert not np.array_equal(first, other)
    unlike = head(replace(settings, model=replace(settings.model, norm="none")), store)
    assert not np.array_equal(first, unlike)

    def never(*_: object, **__: object) -> np.ndarray:
        raise AssertionError("trained again")

    monkeypatch.setattr(mammo_fed.federation.public_start, "pretrain_head", never)
    again = head(settings, store)
    assert np.array_equal(first, again)
    assert again.flags.writeable
    # A seed of no other test: they share the cache.
    with pytest.raises(AssertionError, match="trained again"):
        head(replace(settings, seed=settings.seed + 9001), store)
