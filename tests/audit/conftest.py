"""A small site to audit: a few patients with two images each, and a schedule that is planned as a real one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mammo_fed.audit.claims import Claim
from mammo_fed.audit.subject import Mechanism, Subject
from mammo_fed.models.heads import HeadSpec, build_head, flatten
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.privacy.schedule import plan_schedule
from mammo_fed.training.local import LocalSteps, SiteFeatures

DELTA = 1e-4


@pytest.fixture(scope="session")
def make_subject() -> Callable[..., Subject]:
    """`make_subject(rounds=4)`: the site; `sample_rate` below 1 makes its steps Poisson DP-SGD."""

    def make(
        *,
        dims: int = 24,
        patients: int = 8,
        rounds: int = 4,
        local_steps: int = 1,
        sample_rate: float = 1.0,
        target: float = 6.0,
        unit: str = "patient",
        kind: str = "linear",
        noise: str = "float",
        mean_fraction: float = 0.1,
    ) -> Subject:
        draws = np.random.default_rng(7)
        images = 2 * patients
        rows = draws.standard_normal((images, dims))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        schedule = plan_schedule(
            unit=unit,
            target_epsilon=target,
            delta=DELTA,
            accountant="pld",
            rounds=rounds,
            local_steps=local_steps,
            sample_rate=sample_rate,
            mean_fraction=mean_fraction,
            clipping_norm=0.5,
            mean_clipping_norm=2.0 if unit == "patient" else 1.0,
            max_images_per_patient=16,
        )
        head = HeadSpec(kind=kind, dims=dims, hidden=6)
        return Subject(
            site="site-1",
            data=SiteFeatures(
                features=rows.astype(np.float32),
                labels=draws.integers(0, 2, images),
                units=np.arange(images) // 2 if unit == "patient" else np.arange(images),
                public_images=images,
            ),
            blank=np.eye(dims, dtype=np.float32)[0],
            schedule=schedule,
            claim=Claim(
                epsilon=epsilon(schedule.events(), delta=DELTA, accountant="pld"),
                delta=DELTA,
                events=schedule.events(),
                accountant="pld",
            ),
            head=head,
            closed_form=sample_rate == 1 and kind == "linear",
            steps=LocalSteps(learning_rate=20.0, weight_decay=0.0, optimizer="sgd", label_smoothing=0.0, proximal=0.0),
            start=flatten(build_head(head, seed=0)),
            noise=noise,
        )

    return make


@pytest.fixture(scope="session")
def seeded() -> Callable[..., Mechanism]:
    """`seeded(train=...)`: the sites' code, or a faulty stand-in for part of it, with noise that repeats from test to test."""

    def make(**parts: Callable[..., object]) -> Mechanism:
        return Mechanism(**{"sources": lambda trial: NoiseSource(injected_seed=trial), **parts})

    return make
