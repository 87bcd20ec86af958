"""What a release does to its patients, in the terms an accountant needs; never what it sees."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

from mammo_fed.errors import InvalidSetting

__all__ = [
    "DEFAULT_ACCOUNT",
    "NAME_LENGTH",
    "OLDER_RELATIONS",
    "RELATION",
    "Mechanism",
    "PrivacyEvent",
    "Unit",
    "check_name",
    "events_from_json",
    "events_to_json",
    "full_batch",
]

Unit = Literal["patient", "image"]
Mechanism = Literal["mean", "gradient"]
# One unit contributes nothing; the sizes of the cohort are public constants.
RELATION: Final = "no_contribution"
# Ledgers, records and replies of earlier versions call the same relation so.
OLDER_RELATIONS: Final = ("zero_out",)
DEFAULT_ACCOUNT: Final = "default"
NAME_LENGTH: Final = 200


def _shown(value: object) -> str:
    """A value for a message: whoever sent it decides neither its length nor what a terminal does with it."""
    text = ascii(value)
    return text if len(text) <= NAME_LENGTH else f"{text[:NAME_LENGTH]}..."


@dataclass(frozen=True, kw_only=True)
class PrivacyEvent:
    """Gaussian noise on a sum of clipped contributions, repeated `steps` times.

    Guarantee: none alone; accountants price a sequence of events (mammo_fed.privacy.accounting.pricing).
    Neighbouring datasets: one `unit` contributes nothing, the cohort's size is a public constant (sensitivity `clipping_norm`).

    Attributes:
      mechanism: what is released: the cohort's "mean" feature or a "gradient" sum.
      noise_multiplier: standard deviation of the noise over `clipping_norm`, >= 0; 0 means no noise and an infinite epsilon.
      steps: number of (adaptive) repetitions, >= 1.
      sample_rate: probability with which each unit takes part in a step, in (0, 1]; 1 is the full batch, else Poisson.
      unit: whose data is protected.
      clipping_norm: largest L2 norm that one unit contributes to the sum, > 0.
      max_images_per_patient: enforced bound on a patient's images; prices a patient when the unit is the image. Public.
      noise_shares: number of sites whose shares make up the noise together, in the declared threat model; 1 where the site adds
        all of it (mammo_fed.privacy.shared_noise). It changes no price: that is `noise_multiplier`'s.

    >>> step = PrivacyEvent(mechanism="gradient", noise_multiplier=15.0, steps=1, sample_rate=1.0, unit="patient",
    ...                     clipping_norm=1.0, max_images_per_patient=4)
    >>> step.full_batch, step.repeated(100).steps
    (True, 100)
    """

    mechanism: Mechanism
    noise_multiplier: float
    steps: int
    sample_rate: float
    unit: Unit
    clipping_norm: float
    max_images_per_patient: int
    noise_shares: int = 1

    def __post_init__(self) -> None:
        if self.mechanism not in get_args(Mechanism):
            raise InvalidSetting(f"mechanism={_shown(self.mechanism)} must be one of {get_args(Mechanism)}")
        if self.unit not in get_args(Unit):
            raise InvalidSetting(f"unit={_shown(self.unit)} must be one of {get_args(Unit)}; check privacy.unit")
        # JSON and Python take True for 1, and 1.5 for a count: what is priced must be what is done.
        for name in ("noise_multiplier", "sample_rate", "clipping_norm"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidSetting(f"{name}={_shown(value)} must be a number")
        for name in ("steps", "max_images_per_patient", "noise_shares"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidSetting(f"{name}={_shown(value)} must be a whole number of at least 1")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise InvalidSetting(f"noise_multiplier={self.noise_multiplier} must be a finite number, at least 0")
        if self.steps < 1:
            raise InvalidSetting(f"steps={self.steps} must be a whole number of at least 1; check federation.local_steps")
        if not 0 < self.sample_rate <= 1:
            raise InvalidSetting(f"sample_rate={self.sample_rate} must be in (0, 1]; check privacy.batch_size")
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0):
            raise InvalidSetting(
                f"clipping_norm={self.clipping_norm} must be a finite number above 0; check privacy.clipping_norm"
            )
        if self.max_images_per_patient < 1:
            raise InvalidSetting(
                f"max_images_per_patient={self.max_images_per_patient} must be at least 1; check the site's policy"
            )
        if self.noise_shares < 1 or (self.noise_shares > 1 and not self.full_batch):
            raise InvalidSetting(
                f"noise_shares={self.noise_shares} must be at least 1, and 1 where steps sample; check federation.secure"
            )

    @property
    def full_batch(self) -> bool:
        """Whether every unit takes part in every step."""
        return self.sample_rate == 1.0

    def repeated(self, times: int) -> PrivacyEvent:
        """The same event with `times` as many steps."""
        return replace(self, steps=self.steps * times)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the neighbouring relation spelled out; `noise_shares` only where noise is shared."""
        values = {**asdict(self), "relation": RELATION}
        if self.noise_shares == 1:
            del values["noise_shares"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrivacyEvent:
        """Rebuild an event from `as_dict`.

        Raises:
          InvalidSetting: If a field is missing, unknown, of the wrong type or out of its range.
        """
        fields = dict(values)
        relation = fields.pop("relation", None)
        if relation not in (RELATION, *OLDER_RELATIONS):
            raise InvalidSetting(f"relation={_shown(relation)} must be {RELATION!r}: no other relation is priced")
        try:
            return cls(**fields)
        except TypeError as error:
            raise InvalidSetting(f"a privacy event has the wrong fields or types: {_shown(sorted(fields))}") from error


def events_to_json(events: Sequence[PrivacyEvent]) -> str:
    """Canonical JSON of a sequence of events (sorted keys, no spaces), fit for hashing."""
    return json.dumps([event.as_dict() for event in events], sort_keys=True, separators=(",", ":"), allow_nan=False)


def events_from_json(text: str) -> tuple[PrivacyEvent, ...]:
    """Inverse of `events_to_json`.

    Raises:
      InvalidSetting: If `text` is not a JSON list of events.
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSetting("privacy events are not valid JSON") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidSetting("privacy events must be a JSON list of objects")
    return tuple(PrivacyEvent.from_dict(item) for item in items)


def check_name(name: str, *, setting: str) -> None:
    """Raise InvalidSetting unless `name`, of a site, run, task or account, is 1 to 200 printable characters."""
    if not (0 < len(name) <= NAME_LENGTH and name.isprintable()):
        raise InvalidSetting(f"{setting} must be 1 to {NAME_LENGTH} printable characters; it has {len(name)}")


def full_batch(mechanism: str) -> bool:
    """Whether every unit takes part in every step of the mechanism of that name; those from outside are all of this kind."""
    return mechanism != "dp_sgd"
