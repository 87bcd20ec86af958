"""A mechanism from outside may give the same array for each unit: every unit still counts with its own gradient."""

from __future__ import annotations

import numpy as np

from mammo_fed.privacy.mechanisms.full_batch import LogisticData
from mammo_fed.privacy.mechanisms.unit_descent import UnitSum


def test_one_array_for_all_units_does_not_carry_a_unit_into_the_place_of_others():
    features = np.eye(3, dtype=np.float32)
    data = LogisticData.build(features, np.array([0, 1, 1]), np.arange(3), bias_scale=1.0)
    weights, kept = np.zeros(4, np.float32), np.zeros(4)

    def fresh(rows, labels, weights):
        return rows.sum(axis=0).astype(np.float64)

    def reused(rows, labels, weights):
        kept[:] = rows.sum(axis=0)
        return kept

    sums = [UnitSum(gradient=each, data=data, weights=weights).clipped(clipping_norm=1.0) for each in (fresh, reused)]
    np.testing.assert_array_equal(*sums)
