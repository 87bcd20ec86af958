"""A made-up run with the paper's set sizes: four sites, one of which refuses half way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mammo_fed.reporting.pages.run_page import Curves
from mammo_fed.reporting.plots.score_plots import ScoredSet
from mammo_fed.reporting.record.record import (
    DataSection,
    Evaluation,
    FederationSection,
    ModelSection,
    PrivacySection,
    Provenance,
    Record,
    Seconds,
    SiteData,
    SitePrivacy,
    SynthesisSection,
    guarantee_sentence,
    not_covered_sentences,
)
from mammo_fed.training.evaluation import evaluate_scores

SIZES = {"val": (192, 102), "test": (402, 212), "external": (1106, 394)}
SITES = {"St. Anna": (146, 281), "Nordklinik": (144, 270), "Hôpital Ouest": (144, 275), "City Hospital": (144, 278)}
ROUNDS = 12


def _scored(images: int, patients: int, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and patients with the views of a patient alike."""
    patient = np.sort(np.concatenate([np.arange(patients), draws.integers(0, patients, images - patients)]))
    label = draws.integers(0, 2, patients)[patient]
    latent = (label - 0.5) * 1.9 + draws.normal(size=patients)[patient] * 0.8 + draws.normal(size=images) * 0.7
    return 1 / (1 + np.exp(-latent)), label, patient


def _site_privacy(site: str, rounds: int, refused: bool) -> SitePrivacy:
    spent = tuple(6.0 * math.sqrt(step / ROUNDS) for step in range(1, rounds + 1))
    return SitePrivacy(
        site=site,
        epsilon=spent[-1],
        epsilon_account=8.2 if refused else spent[-1],
        epsilon_after_round=spent,
        patient_epsilon=spent[-1],
        mechanism="full-batch DP gradient descent",
        budget_left=0.0 if refused else 4.0,
        rounds=rounds,
        refused=refused,
    )


def _privacy() -> PrivacySection:
    seen = Provenance(epsilon=math.inf, delta=0.0, trained_on="CBIS-DDSM training images")
    return PrivacySection(
        unit="patient",
        delta=1e-4,
        accountant="gdp",
        mechanism="full-batch DP gradient descent",
        target_epsilon=6.0,
        rounds=ROUNDS,
        local_steps=1,
        noise="operating system",
        relation="no_contribution",
        sites=tuple(
            _site_privacy(site, ROUNDS if row else 7, refused=not row) for row, site in enumerate(sorted(SITES, reverse=True))
        ),
        guarantee=guarantee_sentence(unit="patient", epsilon=6.0, delta=1e-4, noise="operating system", ledger="run"),
        not_covered=not_covered_sentences(evaluation_public=True, synthetic_source="gan", seen=seen),
    )


@pytest.fixture(scope="session")
def scored() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    draws = np.random.default_rng(7)
    return {name: _scored(*size, draws) for name, size in SIZES.items()}


@pytest.fixture(scope="session")
def curves(scored) -> Curves:
    course = tuple(0.86 - 0.2 * math.exp(-step / 3) for step in range(ROUNDS))
    return Curves(
        sets={
            name: ScoredSet(labels=label, scores=score, public=True, round_auroc=course if name == "val" else ())
            for name, (score, label, _) in scored.items()
        }
    )


@pytest.fixture(scope="session")
def record(scored) -> Record:
    return Record(
        run_id="demo-2025-03-04",
        mode="simulate",
        config_hash="3f0c" * 16,
        seeds={"seed": 0, "privacy.noise_seed": None},
        versions={"python": "3.11.2", "torch": "2.9.0"},
        started="2025-03-04T10:00:00+00:00",
        finished="2025-03-04T10:01:34+00:00",
        seconds=Seconds(features=61.2, training=9.8, evaluation=0.4, total=94.1),
        data=DataSection(
            source="mammo_dp",
            fingerprint="ab12" * 16,
            sites=tuple(
                SiteData(
                    site=site, patients=patients, images=images, malignant_fraction=None if site == "Nordklinik" else 0.475
                )
                for site, (patients, images) in SITES.items()
            ),
        ),
        model=ModelSection(
            backbone="lite0+lite2 tap 5 gram", weights_sha256="9e" * 32, scope="linear head", parameters_trained=401
        ),
        synthesis=SynthesisSection(
            use=("whiten", "pretrain"),
            source="gan",
            images=3000,
            sha256="ab" * 32,
            provenance=Provenance(epsilon=math.inf, delta=0.0, trained_on="CBIS-DDSM training images"),
        ),
        privacy=_privacy(),
        evaluation={
            name: Evaluation.from_metrics(evaluate_scores(score, label, patient, bootstrap=200, seed=0))
            for name, (score, label, patient) in scored.items()
        },
        federation=FederationSection(
            strategy="fedavg", rounds=ROUNDS, sites=4, bytes_up=83_200, bytes_down=91_000, seconds_per_round=0.8
        ),
    )
