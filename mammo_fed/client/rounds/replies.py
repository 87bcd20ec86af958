"""A site's replies: what one round releases, with what the ledger priced and the policy declares public, and as stored bytes.

A round releases its update in plaintext with all of its noise, or under masks with all of it or a noise share. The bytes that
the ledger stores are safetensors, with everything but the arrays as strict JSON in the header.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from mammo_fed.client.policy import SiteFile
from mammo_fed.client.rounds.masked_sums import MaskedSums
from mammo_fed.common.serialization import plain
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.errors import (
    InvalidSetting,
    LedgerError,
    LedgerUnavailable,
    PolicyRefused,
    PrivacyRefused,
    SiteNotReady,
    VersionMismatch,
    WeightsError,
)
from mammo_fed.federation.protocol.payload import PublicPayload
from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.secure_aggregation.double_masks import Roster
from mammo_fed.federation.secure_aggregation.opening import LARGEST, quantised, within_range
from mammo_fed.privacy.events import PrivacyEvent, events_from_json, events_to_json, full_batch
from mammo_fed.privacy.ledger.ledger import Ledger, Withdrawn
from mammo_fed.privacy.mechanisms.poisson_sgd import OptimizerState, PublicBatches
from mammo_fed.privacy.mechanisms.unit_descent import UnitGradient
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.privacy.schedule import Schedule
from mammo_fed.privacy.shared_noise import largest_share
from mammo_fed.training.local import LocalSteps, SiteFeatures, gradient_share, mean_share, release_mean, train_head

__all__ = [
    "Prepared",
    "Release",
    "accepted",
    "check_arrays",
    "event_of",
    "mixed",
    "reason_for",
    "refusal",
    "reply_from_bytes",
    "reply_to_bytes",
    "sent_again",
    "update_without_parameters",
]

HEADER_LENGTH: Final = 8
ARRAYS: Final = ("parameters", "masked")
# Of the whole account: they leave the site only where its policy publishes them.
OF_ACCOUNT: Final = ("epsilon_account", "budget_left", "patient_epsilon_account")
# Names in replies that were stored under version 1 of the protocol, which had one kind of reply for all answers.
RENAMED: Final[Mapping[str, str]] = {"weight": "public_images", "patients": "public_patients"}
OF_ACCEPTED: Final = ("malignant_fraction", "fingerprint", "cap_epsilon", "cap_delta")


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A run that the site has accepted; `optimizer` lives as long as the process, and never leaves it.

    `withdrawn` says who of the cohort takes no part; `data` holds none of their images.
    """

    declaration: Declaration
    schedule: Schedule
    data: SiteFeatures
    withdrawn: Withdrawn
    public: PublicBatches | None
    optimizer: OptimizerState | None
    gradient: UnitGradient | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Release:
    """One round at one site, reserved in its ledger.

    Guarantee: that of `event`, for every unit of the prepared data; under shared noise, of the sum alone.

    Attributes:
      site: its name.
      images: its public number of images.
      prepared, task, event: of the round.
      feature_mean, arrays: float32, what the task starts from.
    """

    site: str
    images: int
    prepared: Prepared
    task: RoundTask
    event: PrivacyEvent
    feature_mean: NDArray[np.float32]
    arrays: NDArray[np.float32]

    def plain(self, optimizer: OptimizerState | None) -> NDArray[np.float32]:
        """The site's mean or trained head, float32, flat; `optimizer` is what is kept between rounds, changed in place."""
        prepared, task = self.prepared, self.task
        declaration = prepared.declaration
        source, mode = NoiseSource(injected_seed=declaration.noise_seed), declaration.noise
        noise = source.draws(mode, site=self.site, round_index=task.round_index, purpose="noise")
        if task.kind == "mean":
            return release_mean(prepared.data, event=self.event, noise=noise)
        return train_head(
            prepared.data,
            self.arrays,
            head=declaration.head,
            feature_mean=self.feature_mean,
            steps=LocalSteps(
                learning_rate=task.learning_rate,
                weight_decay=task.weight_decay,
                optimizer=task.optimizer,
                label_smoothing=task.label_smoothing,
                proximal=task.proximal,
            ),
            event=self.event,
            closed_form=full_batch(declaration.mechanism),
            noise=noise,
            sampling=source.draws(mode, site=self.site, round_index=task.round_index, purpose="sampling"),
            normalize=declaration.model.norm == "unit",
            public=prepared.public,
            state=optimizer,
            gradient=prepared.gradient,
        )

    def masked(self, sums: MaskedSums, roster: Roster, optimizer: OptimizerState | None) -> NDArray[np.uint64]:
        """What `plain` gives, or the site's sum with its noise share, as whole numbers under the round's masks."""
        sites = len(roster.members)
        if self.prepared.declaration.aggregation == "shared_noise":
            values = self._with_noise_share(sites)
        else:
            update = self.plain(optimizer).astype(np.float64) - self.arrays
            values = quantised(self.images * update, sites=sites)
        return sums.mask(roster.terms, values)

    def _with_noise_share(self, sites: int) -> NDArray[np.int64]:
        """The site's sum on the grid with its noise share; it may leave the site in a masked sum only."""
        declaration, task, images = self.prepared.declaration, self.task, self.images
        if largest_share(images=images, event=self.event) > LARGEST // sites:
            raise InvalidSetting(f"public_images={images} is too large to be summed over {sites} sites without overflow")
        source = NoiseSource(injected_seed=declaration.noise_seed)
        noise = source.on_grid(site=self.site, round_index=task.round_index, purpose="noise")
        if task.kind == "mean":
            values = mean_share(self.prepared.data, event=self.event, noise=noise)
        else:
            values = gradient_share(
                self.prepared.data,
                self.arrays,
                head=declaration.head,
                feature_mean=self.feature_mean,
                event=self.event,
                noise=noise,
                normalize=declaration.model.norm == "unit",
            )
        return within_range(values, sites=sites)


def event_of(schedule: Schedule, task: RoundTask) -> PrivacyEvent:
    """The declared event that a task spends."""
    if task.kind == "mean":
        if schedule.mean_event is None:
            raise PolicyRefused("the task asks for a mean that was not declared")
        return schedule.mean_event
    if task.round_index > schedule.rounds:
        raise PolicyRefused(f"round {task.round_index} was not declared: the schedule has {schedule.rounds}")
    return schedule.step_event


def check_arrays(
    declaration: Declaration, task: RoundTask, feature_mean: NDArray[np.float32], arrays: NDArray[np.float32]
) -> None:
    """Refuse arrays of the wrong length or not finite, before anything is reserved; no patient's data decides this."""
    wanted = declaration.dims if task.kind == "mean" else declaration.head.num_parameters
    if feature_mean.shape != (declaration.dims,) or arrays.shape != (wanted,):
        raise InvalidSetting(
            f"the task's arrays have {len(feature_mean)} and {len(arrays)} entries, not {declaration.dims} and {wanted}"
        )
    if not (np.isfinite(feature_mean).all() and np.isfinite(arrays).all()):
        raise InvalidSetting("the task's arrays are not finite; the server must send numbers")


def mixed(data: SiteFeatures, payload: PublicPayload) -> SiteFeatures:
    """The site's images and the synthetic ones in one draw, every synthetic image a unit of its own."""
    synthetic = payload.features
    if data.features.ndim == 3:
        synthetic = np.repeat(synthetic[:, None], data.features.shape[1], axis=1)
    first = int(data.units.max()) + 1 if len(data.units) else 0
    return SiteFeatures(
        features=np.concatenate([data.features, synthetic]),
        labels=np.concatenate([data.labels, payload.labels]),
        units=np.concatenate([data.units, first + np.arange(len(payload.labels))]),
        public_images=data.public_images + len(payload.labels),
    )


def accepted(
    file: SiteFile, cohort: Cohort, ledger: Ledger, declaration: Declaration, *, events: tuple[PrivacyEvent, ...]
) -> Accepted:
    """The answer to a declaration that `ledger` has priced: `events` are the whole schedule."""
    policy = file.policy
    cap = ledger.cap(account=policy.account)
    return Accepted(
        **_priced(file, ledger, declaration, events, patient_run=None),
        cap_epsilon=policy.max_epsilon,
        cap_delta=policy.delta,
        cap_since=cap.since if cap else "",
        cap_raised=cap.raised if cap else (),
        fingerprint=fingerprint(cohort, key=None) if cohort.public else secrets.token_hex(32),
        malignant_fraction=float(cohort.labels.mean()) if policy.public_class_balance else None,
    )


def update_without_parameters(
    file: SiteFile, ledger: Ledger, declaration: Declaration, task: RoundTask, *, event: PrivacyEvent, content: str
) -> Update:
    """The answer to a round that `ledger` has reserved, but for what training gives; `content` is the task's hash."""
    return Update(
        **_priced(file, ledger, declaration, (event,), patient_run=declaration.run_id),
        round_index=task.round_index,
        task_hash=content,
        parameters=np.zeros(0, np.float32),
        masked=np.zeros(0, np.uint64),
    )


def sent_again(file: SiteFile, reply: Update | Refusal) -> Update | Refusal:
    """A stored reply as the policy of today lets it leave: figures of the account that it does not publish are taken out."""
    if isinstance(reply, Refusal) or file.policy.public_account:
        return reply
    return replace(reply, epsilon_account=None, patient_epsilon_account=None, budget_left=None)


def refusal(file: SiteFile, reason: Reason) -> Refusal:
    """A reply that says no, with nothing in it that depends on a patient."""
    policy = file.policy
    return Refusal(site=file.site, public_images=policy.public_images, public_patients=policy.public_patients, reason=reason)


def reason_for(error: Exception) -> Reason:
    """The word that crosses the network for an error; its text stays at the site."""
    kinds: tuple[tuple[type[Exception], Reason], ...] = (
        (VersionMismatch, "version"),
        (SiteNotReady, "unready"),
        (PolicyRefused, "policy"),
        # The disk is full or the ledger is locked: it is the same site as before once that has passed.
        (LedgerUnavailable, "internal"),
        (LedgerError, "ledger"),
        (PrivacyRefused, "budget"),
        (WeightsError, "weights"),
        (InvalidSetting, "task"),
    )
    return next((word for kind, word in kinds if isinstance(error, kind)), "internal")


def _priced(
    file: SiteFile,
    ledger: Ledger,
    declaration: Declaration,
    events: tuple[PrivacyEvent, ...],
    *,
    patient_run: str | None,
) -> dict[str, Any]:
    """The fields of a priced reply; in a patient's figure `patient_run` counts whole."""
    policy, accountant, delta = file.policy, declaration.accountant, declaration.delta
    account: dict[str, float | None] = dict.fromkeys(OF_ACCOUNT)
    if policy.public_account:
        account = {
            "epsilon_account": ledger.epsilon(account=policy.account, accountant=accountant, delta=delta),
            "patient_epsilon_account": ledger.patient_epsilon(run_id=patient_run, account=policy.account, delta=delta),
            "budget_left": ledger.budget_left(account=policy.account),
        }
    return {
        "site": file.site,
        "public_images": policy.public_images,
        "public_patients": policy.public_patients,
        "run_id": declaration.run_id,
        "events": events,
        "epsilon": ledger.epsilon(run_id=declaration.run_id, accountant=accountant, delta=delta),
        **account,
        "ledger_head": ledger.head(),
        "withdrawn_at": ledger.withdrawn(()).at,
    }


def reply_to_bytes(reply: Update | Refusal) -> bytes:
    """Bytes from which `reply_from_bytes` rebuilds the reply exactly."""
    if isinstance(reply, Refusal):
        values = {"site": reply.site, "public_images": reply.public_images, "public_patients": reply.public_patients}
        return save({}, metadata={"refusal": _text({**values, "reason": reply.reason})})
    fields = {name: value for name, value in vars(reply).items() if name not in (*ARRAYS, "events")}
    metadata = {"update": _text(fields), "events": events_to_json(reply.events)}
    return save({name: getattr(reply, name) for name in ARRAYS}, metadata=metadata)


def reply_from_bytes(stored: bytes) -> Update | Refusal:
    """Inverse of `reply_to_bytes`; reads what version 1 of the protocol stored, too."""
    length = int.from_bytes(stored[:HEADER_LENGTH], "little")
    about = json.loads(stored[HEADER_LENGTH : HEADER_LENGTH + length])["__metadata__"]
    if "reply" in about:
        return _of_version_1(stored, about)
    if "refusal" in about:
        return Refusal(**json.loads(about["refusal"]))
    return _update(json.loads(about["update"]), about["events"], **load(stored))


def _of_version_1(stored: bytes, about: Mapping[str, str]) -> Update | Refusal:
    fields = {RENAMED.get(name, name): value for name, value in json.loads(about["reply"]).items()}
    reason, arrays = fields.pop("reason"), load(stored)
    if reason:
        return Refusal(reason=reason, **{name: fields[name] for name in ("site", "public_images", "public_patients")})
    fields = {name: value for name, value in fields.items() if name not in OF_ACCEPTED}
    # Replies that were stored before updates could be masked have no such array, and earlier ones fewer figures.
    masked = arrays.get("masked", np.zeros(0, np.uint64))
    known = {"patient_epsilon_account": "inf", "ledger_head": ""} | fields
    return _update(known, about["events"], parameters=arrays["arrays"], masked=masked)


def _update(fields: Mapping[str, Any], events: str, **arrays: Any) -> Update:
    figures = {name: None if fields[name] is None else float(fields[name]) for name in OF_ACCOUNT}
    return Update(**{**fields, **figures, "epsilon": float(fields["epsilon"])}, events=events_from_json(events), **arrays)


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(plain(fields), sort_keys=True, allow_nan=False)
