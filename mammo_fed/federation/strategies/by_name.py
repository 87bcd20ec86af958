"""A strategy by its name in the settings."""

from __future__ import annotations

from typing import Any

from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, FedTrimmedAvg, FedYogi, Krum

from mammo_fed.errors import InvalidSetting
from mammo_fed.extensions.kinds import STRATEGIES
from mammo_fed.federation.protocol.messages import ARRAYS, CONFIG, WEIGHT
from mammo_fed.federation.strategies.fed_agree import FedAgree
from mammo_fed.federation.strategies.influence import Course, Reputation
from mammo_fed.settings import FederationSettings

__all__ = ["strategy_of"]


def strategy_of(settings: FederationSettings, name: str, *, reputation: Reputation, course: Course) -> FedAvg:
    """One of Flower's strategies, FedAgree, or one that another distribution brings.

    Args:
      settings: of the strategies.
      name: of the strategy.
      reputation, course: of FedAgree.

    Raises:
      InvalidSetting: If what another distribution makes is no kind of FedAvg.
    """
    common: dict[str, Any] = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
        "weighted_by_key": WEIGHT,
        "arrayrecord_key": ARRAYS,
        "configrecord_key": CONFIG,
    }
    adaptive: dict[str, Any] = {
        "eta": settings.server_learning_rate,
        "beta_1": settings.beta_1,
        "beta_2": settings.beta_2,
        "tau": settings.tau,
    }
    if name == "FedProx":
        return FedProx(**common, proximal_mu=settings.proximal_mu)
    if name == "FedAdam":
        return FedAdam(**common, **adaptive)
    if name == "FedYogi":
        return FedYogi(**common, **adaptive)
    if name == "FedMedian":
        return FedMedian(**common)
    if name == "FedTrimmedAvg":
        return FedTrimmedAvg(**common, beta=settings.trim)
    if name == "FedAgree":
        return FedAgree(**common, reputation=reputation, course=course, max_share=settings.weight_share)
    if name == "Krum":
        return Krum(**common, num_malicious_nodes=settings.num_malicious)
    if name == "FedAvg":
        return FedAvg(**common)
    found = STRATEGIES.load(name)(settings, **common)
    if not isinstance(found, FedAvg):
        raise InvalidSetting(
            f"federation.strategy={name} from {STRATEGIES.origin(name)} must make a strategy that is a kind of Flower's FedAvg"
        )
    return found
