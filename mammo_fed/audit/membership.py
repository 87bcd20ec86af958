"""Membership inference on the released model: who was trained on, as far as the model alone tells.

A weaker adversary than the canary audit's: it sees one averaged model, not every message. Its curve shows what that leaks
about ordinary patients; it bounds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from mammo_fed.audit.bounds import clopper_pearson
from mammo_fed.audit.shadows import Model, Population, site_data, train_shadow
from mammo_fed.audit.subject import Subject, one_thread
from mammo_fed.errors import InvalidSetting
from mammo_fed.models.heads import HeadSpec, malignancy_score
from mammo_fed.models.whitening import centre_and_normalise
from mammo_fed.training.evaluation import auroc_interval

__all__ = ["FEWEST_SHADOWS", "Attack", "Membership", "infer_membership"]

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

ALLOWED_FPR: Final = 0.01
CONFIDENCE: Final = 0.95
BOOTSTRAP: Final = 1000
FEWEST_SHADOWS: Final = 8
# False positive rates at which the claim's curve is given.
CURVE: Final = np.linspace(0.0, 1.0, 101)
# A score this close to 0 or 1 counts as this far: logits stay finite.
CLOSEST: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How well one score tells members from others.

    Attributes:
      name: "loss threshold" or "likelihood ratio".
      auc: probability that a member scores above another patient; 0.5 is guessing.
      auc_ci: 95 % bootstrap interval over patients.
      tpr: members found at a false positive rate of at most 1 %.
      tpr_ci: 95 % Clopper-Pearson interval of `tpr`, the threshold taken as given.
      curve: (false positive rate, true positive rate) pairs from (0, 0) to (1, 1).
    """

    name: str
    auc: float
    auc_ci: tuple[float, float]
    tpr: float
    tpr_ci: tuple[float, float]
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Membership:
    """What the released model gives away.

    Attributes:
      members, others: patients on each side.
      shadows: models trained for the likelihood ratio.
      attacks: by method.
      auc_allowed, tpr_allowed: largest values that the claim allows anybody, with every message at hand.
      curve_allowed: the claim's own curve, in pairs as those of the attacks.
    """

    members: int
    others: int
    shadows: int
    attacks: tuple[Attack, ...]
    auc_allowed: float
    tpr_allowed: float
    curve_allowed: tuple[tuple[float, float], ...]


def infer_membership(
    population: Population,
    sites: Sequence[Subject],
    model: Model,
    *,
    tail: float,
    shadows: int,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Membership:
    """Attack a released model by its loss, and by a likelihood ratio against models trained with and without each patient.

    Every shadow model trains on a random part of all patients, about as many as the real one. A patient's score, the mean
    logit of the true label, is then compared with two normal distributions: of shadows that had the patient, and that had not.

    Args:
      population: members and held-out patients.
      sites: who trained the model, and how; shadows are trained like it, noise and all, but always with weighted averaging.
      model: the released one.
      tail: part of the last rounds whose models are averaged, in (0, 1].
      shadows: number of shadow models, at least 8.
      seed: deals out patients; the shadows' noise is the operating system's.
      progress: told of every shadow.

    Raises:
      InvalidSetting: If there are too few shadows.

    Source: arXiv:1709.01604 (loss threshold); arXiv:2112.03570 (likelihood ratio, pooled variances).
    """
    if shadows < FEWEST_SHADOWS:
        raise InvalidSetting(f"shadows={shadows} must be at least {FEWEST_SHADOWS}; check --shadows")
    logits = _true_logits(population, sites[0].head, model)
    claim = max((site.claim for site in sites), key=lambda each: each.epsilon)
    member = _of_patients(population.members.astype(np.float64), population.patients) > 0
    losses = _of_patients(np.logaddexp(0.0, -logits), population.patients)
    ratio = _likelihood_ratio(population, sites, model, tail=tail, shadows=shadows, seed=seed, progress=progress)
    grid = np.linspace(0.0, 1.0, 2001)[1:-1]
    return Membership(
        members=int(member.sum()),
        others=int((~member).sum()),
        shadows=shadows,
        attacks=tuple(
            _attack(name, score, member, seed=seed)
            for name, score in (("loss threshold", -losses), ("likelihood ratio", ratio))
        ),
        auc_allowed=float(1 - claim.least_fnr(grid).mean()),
        tpr_allowed=float(1 - claim.least_fnr(np.array([ALLOWED_FPR]))[0]),
        curve_allowed=tuple((float(x), float(1 - claim.least_fnr(np.array([x]))[0])) for x in CURVE),
    )


def _likelihood_ratio(
    population: Population,
    sites: Sequence[Subject],
    model: Model,
    *,
    tail: float,
    shadows: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> Floats:
    """Logarithm of the likelihood ratio of each patient's score, member over not, shape (patients,)."""
    draws = np.random.default_rng(seed)
    count = int(population.patients.max()) + 1
    share = float((_of_patients(population.members.astype(np.float64), population.patients) > 0).mean())
    weights = np.array([site.data.public_images for site in sites], np.float64)
    dealt = draws.choice(len(sites), size=count, p=weights / weights.sum())
    owner = np.where(population.members, population.sites, dealt[population.patients])
    scores, inside = np.empty((shadows, count)), np.empty((shadows, count), bool)
    for number in range(shadows):
        inside[number] = draws.permutation(count) < round(share * count)
        included = inside[number][population.patients]
        data = [site_data(population, included & (owner == index), site) for index, site in enumerate(sites)]
        with one_thread():
            shadow = train_shadow(data, sites, tail=tail)
        scores[number] = _of_patients(_true_logits(population, sites[0].head, shadow), population.patients)
        progress("shadow models", number + 1, shadows)
    own = _of_patients(_true_logits(population, sites[0].head, model), population.patients)
    return _log_normal(own, scores, inside) - _log_normal(own, scores, ~inside)


def _log_normal(own: Floats, scores: Floats, among: NDArray[np.bool_]) -> Floats:
    """Log density of `own` under a normal distribution with each patient's mean `among` shadows and one variance for all.

    A patient whom no shadow has (or all have) gets the density at the mean of all shadows: no evidence either way.
    """
    count = among.sum(axis=0)
    mean = np.where(count > 0, (scores * among).sum(axis=0) / np.maximum(count, 1), scores.mean(axis=0))
    spread = float((((scores - mean) ** 2) * among).sum() / max(1, int(among.sum() - scores.shape[1])))
    density: Floats = -((own - mean) ** 2) / (2 * spread) - 0.5 * np.log(spread)
    return density


def _attack(name: str, score: Floats, member: NDArray[np.bool_], *, seed: int) -> Attack:
    """Metrics of one score, shape (patients,)."""
    fpr, tpr, _ = roc_curve(member, score)
    found = float(tpr[fpr <= ALLOWED_FPR].max())
    members = int(member.sum())
    patients = np.arange(len(score))
    return Attack(
        name=name,
        auc=float(roc_auc_score(member, score)),
        auc_ci=auroc_interval(score, member.astype(np.int64), patients, bootstrap=BOOTSTRAP, seed=seed),
        tpr=found,
        tpr_ci=clopper_pearson(round(found * members), members, confidence=CONFIDENCE),
        curve=tuple((float(x), float(y)) for x, y in zip(fpr, tpr, strict=True)),
    )


def _true_logits(population: Population, head: HeadSpec, model: Model) -> Floats:
    """Logit of each image's true label, shape (images,): high where the model is right and sure."""
    malignant = malignancy_score(head, model.parameters, centre_and_normalise(population.features, model.feature_mean))
    true = np.clip(np.where(population.labels == 1, malignant, 1 - malignant), CLOSEST, 1 - CLOSEST)
    logits: Floats = np.log(true) - np.log1p(-true)
    return logits


def _of_patients(values: Floats, patients: NDArray[np.int64]) -> Floats:
    """Mean over each patient's images, shape (patients,)."""
    mean: Floats = np.bincount(patients, values) / np.bincount(patients)
    return mean
