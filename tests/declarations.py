"""A declaration for tests that need one and train nothing: as a server makes it for a small full-batch run of the head."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.settings import ModelSettings
from mammo_fed.settings.compose import compose_settings


@cache
def usual_model() -> ModelSettings:
    return compose_settings([]).settings.model


def declared(**changes: Any) -> Declaration:
    """The usual declaration with some fields changed."""
    usual = Declaration(
        run_id="run1",
        model=usual_model(),
        weights_sha256="a" * 64,
        whitening_sha256="b" * 64,
        synthesis_provenance="procedural",
        dims=4,
        unit="patient",
        target_epsilon=6.0,
        delta=1e-4,
        accountant="pld",
        mechanism="dp_gd",
        noise="secure",
        clipping_norm=0.5,
        mean_clipping_norm=2.0,
        mean_fraction=0.1,
        batch_size=128,
        rounds=2,
        local_steps=1,
        noise_seed=None,
    )
    return replace(usual, **changes)
