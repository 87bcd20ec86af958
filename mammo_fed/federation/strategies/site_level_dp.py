"""Site-level differential privacy at the server: clip every site's update, average, add noise, keep account with Flower.

Flower's own strategy does this too. What differs here, and why:

- Flower draws from numpy's global generator. Here clipped updates are rounded to a public grid and summed in integers, and
  discrete Gaussian noise comes from the operating system (mammo_fed.privacy.noise).
- Flower takes a round whole or not at all, from a number of sites fixed before the run. Here sites come late or are left out;
  the noise is scaled to those whose updates count, a public number.
- Flower's clipping divides by zero where a site sends the model back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyAccountant,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.protocol.messages import ARRAYS, METRICS, WEIGHT, pack_parameters, read_parameters
from mammo_fed.privacy.noise import GRID_STEPS, GridDraws, grid_sigma, grid_sum
from mammo_fed.settings import CentralSettings

__all__ = ["SiteLevelNoise", "accountant_state", "noisy_average", "site_level_accountant", "take_up_accountant"]


def noisy_average(
    updates: NDArray[np.float64], *, clipping_norm: float, noise_multiplier: float, draws: GridDraws
) -> NDArray[np.float64]:
    """Average of the sites' clipped updates with Gaussian noise, float64, shape (dims,).

    Guarantee: one Gaussian mechanism with noise multiplier `noise_multiplier`; see mammo_fed.privacy.noise.
    Neighbouring federations: one site's update replaced by no change, the number of updates public.
    Edge cases: an update that is not finite, or zero, counts as no change.

    Args:
      updates: float64, shape (sites, dims), at least one site: what each site changed in the model.
      clipping_norm: largest norm of an update, > 0.
      noise_multiplier: standard deviation of the noise on the sum, in units of `clipping_norm`, > 0.
      draws: for this release alone.
    """
    total = grid_sum(updates, clipping_norm=clipping_norm)
    total += draws.gaussian(len(total), sigma=grid_sigma(noise_multiplier))
    return total.astype(np.float64) * (clipping_norm / GRID_STEPS / len(updates))


def site_level_accountant(settings: CentralSettings, *, sites: int) -> PrivacyAccountant:
    """Flower's accountant for releases that every site may be part of; nothing is gained by drawing sites."""
    config = PrivacyConfig(
        target_delta=settings.delta,
        population_size=sites,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    accountant: PrivacyAccountant = RdpAccountant(config)
    return accountant


def accountant_state(accountant: PrivacyAccountant) -> NDArray[np.uint8]:
    """All that an accountant has composed, as bytes that a checkpoint can hold."""
    return np.frombuffer(json.dumps(accountant.state_dict(), allow_nan=False).encode(), np.uint8)


def take_up_accountant(accountant: PrivacyAccountant, state: NDArray[np.uint8]) -> None:
    """Take up what `accountant_state` gave.

    Raises:
      InvalidSetting: If it is of other settings.
    """
    try:
        accountant.load_state_dict(json.loads(state.tobytes()))
    except ValueError as error:
        raise InvalidSetting(
            "federation.central and federation.num_sites must be those that the run began with; resume it as it was"
        ) from error


class SiteLevelNoise(DifferentialPrivacyServerSideFixedClipping):
    """Flower's site-level privacy around a strategy that averages, with this package's clipping and noise.

    Guarantee: every aggregate is one release of `noisy_average`, composed in the accountant before it is returned. It holds
    against whoever sees the aggregates, not against the server. All sites weigh the same, whatever their size.

    Args:
      strategy: FedAvg or FedProx.
      settings: of the noise.
      sites: of the federation.
      accountant: may be shared by several strategies.
      draws: of the release in a round.
    """

    def __init__(
        self,
        strategy: FedAvg,
        *,
        settings: CentralSettings,
        sites: int,
        accountant: PrivacyAccountant,
        draws: Callable[[int], GridDraws],
    ) -> None:
        super().__init__(strategy, settings.noise_multiplier, settings.clipping_norm, sites, accountant=accountant)
        self._draws, self._sites = draws, sites

    def _prepare_accounting(self, server_round: int, messages: Iterable[Message]) -> Iterable[Message]:
        """Nothing yet: a round may be asked for several times, and is composed when it is released."""
        del server_round
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The noisy average of clipped updates, added to what the sites were sent."""
        taken = list(replies)
        if not taken:
            return None, None
        for reply in taken:
            reply.content[METRICS] = MetricRecord({WEIGHT: 1})
        self._validate_uniform_weights(taken)
        sent = read_parameters(self.current_arrays).astype(np.float64)
        average = noisy_average(
            np.stack([read_parameters(reply.content.array_records[ARRAYS]) for reply in taken]) - sent,
            clipping_norm=self.clipping_norm,
            noise_multiplier=self.noise_multiplier,
            draws=self._draws(server_round),
        )
        self._compose_release(
            GaussianPrivacyEvent(
                noise_multiplier=self.noise_multiplier,
                sample_size=min(len(taken), self._sites),
                population_size=self._sites,
            )
        )
        return pack_parameters((sent + average).astype(np.float32)), None
