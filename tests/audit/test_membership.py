"""Membership inference: it finds who is in a model that has learned them by heart, and nobody where there is nothing."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from mammo_fed.audit.membership import infer_membership
from mammo_fed.audit.shadows import Model, Population, train_shadow
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.schedule import Schedule
from mammo_fed.training.local import SiteFeatures


def quiet(subject):
    """The same site with next to no noise."""
    schedule = subject.schedule
    loud = [replace(event, noise_multiplier=1e-6) for event in (schedule.mean_event, schedule.step_event)]
    return replace(subject, schedule=Schedule(mean_event=loud[0], step_event=loud[1], rounds=12))


def population(dims=120, patients=60):
    """Twice as many members as others, two images each, labels that nothing explains."""
    draws = np.random.default_rng(4)
    rows = draws.standard_normal((2 * patients, dims))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    numbers = np.repeat(np.arange(patients), 2)
    return Population(
        features=rows.astype(np.float32),
        labels=np.repeat(draws.integers(0, 2, patients), 2),
        patients=numbers,
        sites=numbers % 2,
        members=numbers < 40,
    )


@pytest.fixture(scope="module")
def sites(make_subject):
    made = [make_subject(dims=120, patients=20), make_subject(dims=120, patients=20)]
    return tuple(replace(site, site=f"site-{number}") for number, site in enumerate(made, start=1))


def released(people, sites):
    data = [
        SiteFeatures(
            features=people.features[rows],
            labels=people.labels[rows],
            units=np.unique(people.patients[rows], return_inverse=True)[1],
            public_images=site.data.public_images,
        )
        for number, site in enumerate(sites)
        for rows in [people.members & (people.sites == number)]
    ]
    return train_shadow(data, sites, tail=0.3)


def test_both_attacks_find_who_is_in_a_model_without_noise(sites):
    loud = tuple(quiet(site) for site in sites)
    people = population()
    found = infer_membership(people, loud, released(people, loud), tail=0.3, shadows=16, seed=0)
    assert (found.members, found.others, found.shadows) == (40, 20, 16)
    for attack in found.attacks:
        assert attack.auc > 0.8
        assert attack.auc_ci[0] <= attack.auc <= attack.auc_ci[1]
        assert attack.tpr_ci[0] <= attack.tpr <= attack.tpr_ci[1]


def test_no_attack_finds_anybody_in_a_model_that_saw_nobody(sites):
    people = population()
    blind = Model(feature_mean=np.zeros(120, np.float32), parameters=np.zeros(121, np.float32))
    found = infer_membership(people, sites, blind, tail=0.3, shadows=8, seed=0)
    by_loss = found.attacks[0]
    assert by_loss.auc == 0.5
    assert by_loss.tpr == 0.0


def test_curves_run_from_corner_to_corner_and_never_fall(sites):
    people = population()
    found = infer_membership(people, sites, released(people, sites), tail=0.3, shadows=8, seed=0)
    assert [attack.name for attack in found.attacks] == ["loss threshold", "likelihood ratio"]
    for points in (*(attack.curve for attack in found.attacks), found.curve_allowed):
        curve = np.array(points)
        assert curve[0].tolist() == [0.0, 0.0]
        assert curve[-1].tolist() == [1.0, 1.0]
        assert (np.diff(curve, axis=0) >= 0).all()


def test_what_the_claim_allows_is_the_gaussian_curve(sites):
    people = population()
    mu = sites[0].claim.mu
    found = infer_membership(people, sites, released(people, sites), tail=0.3, shadows=8, seed=0)
    assert found.auc_allowed == pytest.approx(norm.cdf(mu / np.sqrt(2)), abs=1e-3)
    assert found.tpr_allowed == pytest.approx(norm.sf(norm.isf(0.01) - mu), rel=1e-6)


def test_too_few_shadows_are_refused(sites):
    people = population()
    with pytest.raises(InvalidSetting, match=r"shadows=7 must be at least 8; check --shadows"):
        infer_membership(
            people, sites, Model(feature_mean=np.zeros(120), parameters=np.zeros(121)), tail=0.3, shadows=7, seed=0
        )
