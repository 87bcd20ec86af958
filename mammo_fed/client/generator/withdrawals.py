"""Patients who withdraw while a generator trains on them: no step that begins later looks at their images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from mammo_fed.data.cohort import Cohort
from mammo_fed.errors import PolicyRefused
from mammo_fed.privacy.ledger.ledger import Ledger
from mammo_fed.privacy.patient_identity import count_patients
from mammo_fed.synthesis.adversarial import Adversaries, RealGradient
from mammo_fed.synthesis.real_gradients import RealImages

__all__ = ["heeding_withdrawals"]


def heeding_withdrawals(
    gradients: RealGradient, ledger: Ledger, *, cohort: Cohort, real: RealImages, min_patients: int
) -> RealGradient:
    """`gradients` that ask the ledger before each step who has withdrawn, and take those for absent.

    The other units keep their places, so that what they contribute and how they are drawn stays as it was.

    Args:
      gradients: of `real`, which they look at afresh in each step.
      ledger: of the patients' site.
      cohort: whose images `real` has, in its order.
      real: changed: images of who withdrew are marked as absent.
      min_patients: of the site's policy; the training stops with fewer, and may not be resumed.
    """
    heeded = -1

    def step(adversaries: Adversaries, number: int) -> tuple[list[Tensor], float | None]:
        nonlocal heeded
        if ledger.withdrawn(()).seq != heeded:
            withdrawn = ledger.withdrawn(cohort.patients.tolist())
            gone = np.isin(cohort.patients, sorted(withdrawn.patients))
            if count_patients(cohort.patients[~gone]) < min_patients:
                raise PolicyRefused(
                    f"withdrawals until {withdrawn.at} left fewer than min_patients={min_patients}: the training stops; check "
                    "[policy] in the site's file"
                )
            real.present[gone] = False
            heeded = withdrawn.seq
        return gradients.step(adversaries, number)

    return replace(gradients, step=step)
