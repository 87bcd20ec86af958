"""Canaries: one unit of the site gives its seat to a record that is easy to recognise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mammo_fed.audit.adversaries import Play, Saturating, honest
from mammo_fed.audit.subject import Subject
from mammo_fed.errors import InvalidSetting
from mammo_fed.training.local import SiteFeatures

__all__ = ["CANARIES", "Canary", "CanaryKind", "place_canary"]

CanaryKind = Literal["gradient", "mislabelled", "blank"]
CANARIES: Final[tuple[CanaryKind, ...]] = get_args(CanaryKind)

MOST_IMAGES: Final = 16
MALIGNANT: Final = 1
DESCRIPTION: Final = {
    "gradient": "a patient whose gradient and features reach their clips, in directions of its own; a server that sends what "
    "shows it best",
    "mislabelled": "a patient of the site with the wrong label; a server that follows the protocol",
    "blank": "a patient of the site whose images are black but for one faint pixel; a server that follows the protocol",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Canary:
    """A canary in its seat, and the adversary who looks for it.

    Attributes:
      kind: of CANARIES.
      absent: the site with a canary that contributes nothing: its rows are zero, the public counts stay.
      present: the site with the canary.
      play: starts the adversary's part of one trial.
    """

    kind: CanaryKind
    absent: SiteFeatures
    present: SiteFeatures
    play: Callable[[], Play]

    @property
    def description(self) -> str:
        """What the canary is and who looks for it."""
        return DESCRIPTION[self.kind]


def place_canary(subject: Subject, kind: CanaryKind, *, seed: int) -> Canary:
    """Put a canary in the seat of one unit of the site, drawn with `seed`.

    Raises:
      InvalidSetting: If the kind is unknown, or the site has fewer than two units.
    """
    if kind not in CANARIES:
        raise InvalidSetting(f"canary={kind!r} must be one of {CANARIES}; check --canary")
    units = np.unique(subject.data.units)
    if len(units) < 2:
        raise InvalidSetting(f"site {subject.site} must have at least two {subject.claim.events[0].unit}s to be audited")
    seat = subject.data.units == np.random.default_rng(seed).choice(units)
    others = _only(subject.data, ~seat)
    if kind == "gradient":
        return _gradient(subject, others)
    features, labels = subject.data.features[seat], subject.data.labels[seat]
    if kind == "mislabelled":
        labels = 1 - labels
    else:
        features = np.tile(subject.blank, (len(labels), 1))
    present = _with_unit(others, features, labels)
    return Canary(kind=kind, absent=others, present=present, play=partial(honest, subject, others, present))


def _gradient(subject: Subject, others: SiteFeatures) -> Canary:
    event = subject.schedule.step_event
    images = 1 if event.unit == "image" else min(MOST_IMAGES, event.max_images_per_patient)
    # The directions in which the other patients differ least: none at all where there are fewer images than features.
    *_, directions = np.linalg.svd(others.features.astype(np.float64), full_matrices=True)
    canary, aside = (direction.astype(np.float32) for direction in (directions[-1], directions[-2]))
    present = _with_unit(others, np.tile(canary, (images, 1)), np.full(images, MALIGNANT, np.int64))
    play = Saturating(subject, others, present, canary=canary, aside=aside)
    return Canary(kind="gradient", absent=others, present=present, play=play)


def _only(data: SiteFeatures, rows: NDArray[np.bool_]) -> SiteFeatures:
    return SiteFeatures(
        features=data.features[rows],
        labels=data.labels[rows],
        units=np.unique(data.units[rows], return_inverse=True)[1].astype(np.int64),
        public_images=data.public_images,
    )


def _with_unit(others: SiteFeatures, features: NDArray[np.float32], labels: NDArray[np.int64]) -> SiteFeatures:
    return SiteFeatures(
        features=np.concatenate([others.features, features]).astype(np.float32),
        labels=np.concatenate([others.labels, labels]),
        units=np.concatenate([others.units, np.full(len(labels), others.units.max() + 1)]),
        public_images=others.public_images,
    )
