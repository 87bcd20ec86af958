"""Sites, rounds, and how the server adds up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from mammo_fed.errors import InvalidSetting
from mammo_fed.extensions.kinds import STRATEGIES
from mammo_fed.settings.central import CentralSettings, SecureSettings
from mammo_fed.settings.checks import Auto, at_least
from mammo_fed.settings.data import PartitionRule

__all__ = ["FEWEST_TO_COMPARE", "ROBUST", "FederationSettings"]

# Rules that look at single updates; as post-processing of the sites' means they have a place where pseudo-gradients have none.
ROBUST: Final = ("FedMedian", "FedTrimmedAvg", "Krum", "FedAgree")
# Site-level noise is on a plain average.
AVERAGING: Final = ("FedAvg", "FedProx")
# Of two sites that disagree nobody can tell which is right.
FEWEST_TO_COMPARE: Final = 3
# They need no more than the sites' sum.
SUMMABLE: Final = (*AVERAGING, "FedAdam", "FedYogi")


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """Sites, rounds and how the server adds up.

    Attributes:
      num_sites: hospitals in a simulation; 1 is the centralized configuration.
      partition, partition_alpha: how patients are split over simulated hospitals.
      rounds, local_steps: communication rounds and local steps in each; no rounds release the public start, and no site is
        asked for anything.
      keep_optimizer: a site's local optimizer goes on from round to round, as in one long training.
      release: which model is the result: "average" of the last rounds (see `tail`), or "best_val", the round with the highest
        validation AUPRC (benign), which epsilon does not cover.
      strategy: Flower's strategy by name, "FedAgree" (mammo_fed.federation.strategies.fed_agree), or one that another
        distribution brings; see docs/recipes.md. "auto" is `resolved_strategy`.
      fraction: part of the sites that trains in a round, in (0, 1].
      min_nodes: sites to wait for, >= 1; "auto" is all of them.
      tail: part of the last rounds whose models are averaged, in (0, 1].
      proximal_mu, server_learning_rate, beta_1, beta_2, tau, trim, num_malicious: the strategies' own parameters.
      min_replies: replies that a round needs, >= 1; with fewer it is tried again.
      round_min_wait: seconds that a round waits at least for every site before it proceeds with those that replied. Simulated
        sites are always waited for: this and the next three are for sites on machines of their own.
      round_timeout: seconds that a round waits at most; also for the first sites to come.
      resend_after: seconds after which a site that has not answered is sent the same task again; it answers it once.
      max_failed_rounds: after so many tries of one round without enough replies the run stops, and can be resumed.
      max_weight_share: largest share that one site has in an average, whatever size it declares, in (0, 1]; under masks a site
        above it takes no part. "auto" is `weight_share`.
      max_update_norm: largest norm of a site's change of the model that is taken in; "auto" is what its declared schedule can
        reach, infinity takes any.
      site_budgets: each simulated site's own maximum epsilon; empty means the target everywhere.
      central, secure: see mammo_fed.settings.central.
    """

    num_sites: int
    partition: PartitionRule
    partition_alpha: float
    rounds: int | Auto
    local_steps: int | Auto
    keep_optimizer: bool
    release: Literal["average", "best_val"]
    strategy: str
    fraction: float
    min_nodes: int | Auto
    tail: float
    proximal_mu: float
    server_learning_rate: float
    beta_1: float
    beta_2: float
    tau: float
    trim: float
    num_malicious: int
    min_replies: int
    round_min_wait: float
    round_timeout: float
    resend_after: float
    max_failed_rounds: int
    max_update_norm: float | Auto
    site_budgets: tuple[float, ...]
    central: CentralSettings
    secure: SecureSettings
    # A run that was begun by an earlier release is resumed without it.
    max_weight_share: float | Auto = "auto"

    def __post_init__(self) -> None:
        if self.strategy != "auto":
            STRATEGIES.check(self.strategy, beside=("auto",))
        at_least("federation.num_sites", self.num_sites, 1)
        for name, least in (("rounds", 0), ("local_steps", 1), ("min_nodes", 1)):
            if getattr(self, name) != "auto":
                at_least(f"federation.{name}", getattr(self, name), least)
        for name in ("fraction", "tail"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidSetting(f"federation.{name}={getattr(self, name)} must be in (0, 1]")
        for name in ("min_replies", "max_failed_rounds"):
            at_least(f"federation.{name}", getattr(self, name), 1)
        for name in ("server_learning_rate", "tau", "round_timeout", "resend_after", "partition_alpha"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidSetting(f"federation.{name}={getattr(self, name)} must be a finite number above 0")
        for name in ("beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidSetting(f"federation.{name}={getattr(self, name)} must be in [0, 1)")
        if not (math.isfinite(self.proximal_mu) and self.proximal_mu >= 0):
            raise InvalidSetting(f"federation.proximal_mu={self.proximal_mu} must be a finite number, at least 0")
        at_least("federation.num_malicious", self.num_malicious, 0)
        if self.min_nodes != "auto" and self.min_nodes > self.num_sites:
            raise InvalidSetting(f"federation.min_nodes={self.min_nodes} must be at most federation.num_sites={self.num_sites}")
        if not 0 <= self.trim < 0.5:
            raise InvalidSetting(f"federation.trim={self.trim} must be in [0, 0.5)")
        if self.site_budgets and len(self.site_budgets) != self.num_sites:
            raise InvalidSetting(
                f"federation.site_budgets={list(self.site_budgets)} must name one maximum epsilon for each of the "
                f"{self.num_sites} sites, or none"
            )
        if not 0 <= self.round_min_wait <= self.round_timeout:
            raise InvalidSetting(
                f"federation.round_min_wait={self.round_min_wait} must be at least 0 and at most federation.round_timeout="
                f"{self.round_timeout}"
            )
        if self.max_update_norm != "auto" and not self.max_update_norm > 0:
            raise InvalidSetting(f"federation.max_update_norm={self.max_update_norm} must be above 0, inf or auto")
        if self.max_weight_share != "auto" and not 0 < self.max_weight_share <= 1:
            raise InvalidSetting(f"federation.max_weight_share={self.max_weight_share} must be in (0, 1] or auto")
        if self.central.noise_multiplier > 0 and self.resolved_strategy not in AVERAGING:
            raise InvalidSetting(
                f"federation.strategy={self.strategy} must be FedAvg or FedProx where federation.central adds noise; "
                "choose one, or set federation.central.noise_multiplier=0"
            )
        self._check_secure()
        if self.chosen_sites < self._strategy_replies:
            raise InvalidSetting(
                f"federation.num_malicious={self.num_malicious} needs at least {self._strategy_replies} sites a round under "
                f"federation.strategy={self.strategy}, and {self.chosen_sites} take part (federation.num_sites="
                f"{self.num_sites}, fraction={self.fraction:g}); suppose fewer of them, or choose another strategy"
            )
        if self.resolved_strategy == "FedTrimmedAvg" and int(self.trim * self.chosen_sites) < self.num_malicious:
            raise InvalidSetting(
                f"federation.trim={self.trim} cuts {int(self.trim * self.chosen_sites)} of {self.chosen_sites} sites at each "
                f"end, fewer than federation.num_malicious={self.num_malicious}; raise trim"
            )
        if any(not budget > 0 for budget in self.site_budgets):
            raise InvalidSetting(f"federation.site_budgets={list(self.site_budgets)} must be above 0")

    @property
    def chosen_sites(self) -> int:
        """Number of sites that train in a round."""
        return max(1, round(self.fraction * self.num_sites))

    @property
    def resolved_strategy(self) -> str:
        """`strategy`; where it is "auto": FedAgree if at least three sites train in a round and their updates can be compared.

        Under masks, and where the server adds site-level noise to a plain average, that is FedAvg.
        """
        if self.strategy != "auto":
            return self.strategy
        comparable = self.secure.use == "none" and self.central.noise_multiplier == 0
        return "FedAgree" if comparable and self.chosen_sites >= FEWEST_TO_COMPARE else "FedAvg"

    @property
    def weight_share(self) -> float:
        """`max_weight_share`; where it is "auto": 0.6, and 0.75 of two sites or under masks."""
        if self.max_weight_share != "auto":
            return self.max_weight_share
        return 0.6 if self.secure.use == "none" and self.chosen_sites >= FEWEST_TO_COMPARE else 0.75

    @property
    def fewest_replies(self) -> int:
        """Replies without which a round is tried again: `min_replies`, or what the strategy needs for its hostile sites."""
        return max(self.min_replies, self._strategy_replies)

    @property
    def _strategy_replies(self) -> int:
        """Krum needs 2 f + 3 sites (arXiv:1703.02757); a median, a trimmed mean and a comparison an honest majority."""
        if self.resolved_strategy == "Krum":
            return 2 * self.num_malicious + 3
        return 2 * self.num_malicious + 1 if self.resolved_strategy in ROBUST and self.num_malicious else 1

    @property
    def min_survivors(self) -> int:
        """The smallest number of sites whose sum is opened; 1 where the server sees every update."""
        return 1 if self.secure.use == "none" else self.secure.survivors(self.chosen_sites)

    def _check_secure(self) -> None:
        """The server cannot judge, weigh or clip what it cannot see."""
        if self.secure.use == "none":
            return
        if self.num_sites < 2:
            raise InvalidSetting(f"federation.secure.use={self.secure.use} needs federation.num_sites of at least 2")
        if self.min_survivors > self.chosen_sites:
            raise InvalidSetting(
                f"federation.secure.min_survivors={self.secure.min_survivors} must be at most the {self.chosen_sites} sites of "
                f"a round (federation.num_sites={self.num_sites}, fraction={self.fraction:g})"
            )
        if self.secure.colluders >= self.min_survivors or 2 * self.min_survivors <= self.chosen_sites + self.secure.colluders:
            raise InvalidSetting(
                f"federation.secure.min_survivors={self.min_survivors} must be above half of the {self.chosen_sites} sites of "
                f"a round and the {self.secure.colluders} colluders together: otherwise two sets of survivors could be opened"
            )
        if self.resolved_strategy not in SUMMABLE:
            raise InvalidSetting(
                f"federation.strategy={self.strategy} looks at single updates, and secure.use={self.secure.use} hides them: "
                "choose FedAvg, FedProx, FedAdam or FedYogi"
            )
        if self.weight_share < 0.5:
            raise InvalidSetting(
                f"federation.max_weight_share={self.max_weight_share} must be at least 0.5 or auto where federation.secure.use="
                f"{self.secure.use}: sites weigh their own updates there, and one above the share takes no part"
            )
        if self.max_update_norm not in ("auto", math.inf):
            raise InvalidSetting(
                f"federation.max_update_norm={self.max_update_norm} bounds single updates, and federation.secure.use="
                f"{self.secure.use} hides them: leave it at auto, which then bounds the sum"
            )
        if self.central.noise_multiplier > 0:
            raise InvalidSetting(
                "federation.central clips single updates, and federation.secure.use="
                f"{self.secure.use} hides them: use one of the two"
            )
        if self.secure.use == "shared_noise" and (
            self.resolved_strategy != "FedAvg" or self.fraction < 1 or self.local_steps not in ("auto", 1)
        ):
            raise InvalidSetting(
                "federation.secure.use=shared_noise needs one plain sum a round: federation.strategy=FedAvg, fraction=1 and "
                "local_steps=1"
            )
