"""What is promised, and the mechanism that keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mammo_fed.errors import InvalidSetting
from mammo_fed.extensions.kinds import ACCOUNTANTS, MECHANISMS
from mammo_fed.privacy.events import Unit, full_batch
from mammo_fed.privacy.names import AccountantName, LocalOptimizer, MechanismName, NoiseMode
from mammo_fed.settings.checks import Auto, at_least, check_delta, check_seed

__all__ = ["PrivacySettings"]


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """What is promised and the mechanism that keeps the promise; "auto" values are filled in by mammo_fed.recipe.

    Attributes:
      unit: whose data is protected.
      target_epsilon: of the whole run at every site, > 0; infinity trains without noise and without a guarantee.
      delta: in (0, 0.1).
      accountant: "pld" (default), "rdp" (the paper's), "prv", or one that another distribution brings.
      mechanism: "dp_gd" (full batch, closed form), "dp_sgd" (Poisson sampling, Opacus), or the gradient that another
        distribution brings, in the full batch; see docs/recipes.md.
      clipping_norm: largest gradient norm of one unit.
      mean_clipping_norm: largest norm of one unit's sum of features in the private mean.
      mean_fraction: part of the budget (of mu squared) spent on the private mean, in [0, 1).
      batch_size: expected images a step at a site under dp_sgd.
      learning_rate, weight_decay, optimizer, label_smoothing: of the local steps.
      max_images_per_patient: enforced at the site; public.
      ledger: "run" (a fresh one in the run folder) or a folder whose ledgers carry over all runs.
      noise: "secure" (units rounded to a public grid, integer sums, discrete Gaussian noise) or "float".
      noise_seed: injects the noise for tests and benchmarks on public cohorts; voids the guarantee.
      require_public_synthesis: whether a synthetic set is refused whose generator saw patients without differential privacy, or
        patients who (may) train in the run too.
    """

    unit: Unit
    target_epsilon: float
    delta: float
    accountant: AccountantName
    mechanism: MechanismName
    clipping_norm: float | Auto
    mean_clipping_norm: float | Auto
    mean_fraction: float
    batch_size: int
    learning_rate: float | Auto
    weight_decay: float
    optimizer: LocalOptimizer
    label_smoothing: float
    max_images_per_patient: int
    ledger: str
    noise: NoiseMode
    noise_seed: int | None
    require_public_synthesis: bool

    def __post_init__(self) -> None:
        MECHANISMS.check(self.mechanism)
        ACCOUNTANTS.check(self.accountant)
        if self.accountant == "gdp":
            raise InvalidSetting("privacy.accountant=gdp must be another accountant, such as pld: it prices no sampled steps")
        if not self.target_epsilon > 0:
            raise InvalidSetting(
                f"privacy.target_epsilon={self.target_epsilon} must be above 0 (inf trains without privacy); 1 to 10 is usual"
            )
        check_delta("privacy.delta", self.delta)
        for name in ("clipping_norm", "mean_clipping_norm", "learning_rate"):
            value = getattr(self, name)
            if value != "auto" and not (math.isfinite(value) and value > 0):
                raise InvalidSetting(f"privacy.{name}={value} must be a finite number above 0, or auto")
        if not 0 <= self.mean_fraction < 1:
            raise InvalidSetting(f"privacy.mean_fraction={self.mean_fraction} must be in [0, 1)")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidSetting(f"privacy.label_smoothing={self.label_smoothing} must be in [0, 1)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InvalidSetting(f"privacy.weight_decay={self.weight_decay} must be a finite number, at least 0")
        at_least("privacy.batch_size", self.batch_size, 1)
        at_least("privacy.max_images_per_patient", self.max_images_per_patient, 1)
        check_seed("privacy.noise_seed", self.noise_seed)
        if not self.ledger:
            # Not the current folder, in which nobody would look for what patients have spent.
            raise InvalidSetting('privacy.ledger= must be "run" or name a folder; is a variable of the shell empty?')
        self._check_mechanism()

    def _check_mechanism(self) -> None:
        if full_batch(self.mechanism) and (self.label_smoothing > 0 or self.weight_decay > 0 or self.optimizer != "sgd"):
            raise InvalidSetting(
                f"privacy.mechanism={self.mechanism} takes plain gradient steps: set privacy.optimizer=sgd, weight_decay=0 and "
                "label_smoothing=0, or choose privacy=dp_sgd"
            )
