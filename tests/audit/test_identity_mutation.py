"""The fault of one patient under two identifiers: the gate sees it in a release, and the audit in what is released."""

from dataclasses import replace

import numpy as np

import mammo_fed.data.cohort as cohort_module
from mammo_fed.audit.subject import sensitivity
from mammo_fed.audit.trials import audit_canary
from mammo_fed.data.cohort import Cohort
from mammo_fed.privacy.patient_identity import patient_index
from mammo_fed.training.local import release_mean, train_head


def later_under_a_second_id(units: np.ndarray) -> np.ndarray:
    """Units with every image of a patient but the first filed under a second patient."""
    seen: set[int] = set()
    filed = []
    for unit in units.tolist():
        filed.append(unit + (1 + int(units.max())) * (unit in seen))
        seen.add(unit)
    return np.unique(filed, return_inverse=True)[1].astype(np.int64)


def test_mutation_one_patient_under_two_identifiers_is_caught_by_the_gate_and_by_the_audit(make_subject, seeded):
    def filed(site):
        return replace(site, units=later_under_a_second_id(site.units))

    code = seeded(
        mean=lambda site, **rest: release_mean(filed(site), **rest),
        train=lambda site, flat, **rest: train_head(filed(site), flat, **rest),
    )
    subject = make_subject(rounds=1)
    moves = sensitivity(subject, code)
    assert moves["gradient"] > 1.9
    assert moves["mean"] > 1.9
    assert audit_canary(subject, "gradient", trials=200, seed=0, mechanism=code).rejected


def test_mutation_of_unit_index_that_splits_a_patient_changes_the_units_of_identity(monkeypatch):
    patients = np.array(["b", "a", "b", "b"])
    whole = Cohort(
        name="c",
        pixels=np.zeros((4, 4, 4), np.float32),
        labels=np.array([0, 1, 0, 1]),
        patients=patients,
        images=np.array(list("wxyz")),
        views=np.full(4, ""),
        splits=np.full(4, "train"),
        public=True,
    )
    units = whole.unit_index("patient")
    assert [len(set(units[patients == patient].tolist())) for patient in ("a", "b")] == [1, 1]
    monkeypatch.setattr(cohort_module, "patient_index", lambda names: later_under_a_second_id(patient_index(names)))
    assert len(set(whole.unit_index("patient")[patients == "b"].tolist())) == 2
