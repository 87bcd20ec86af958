"""One hospital: its features, its ledger, and its answer to a declaration and to a round."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mammo_fed.client.charging import Charge, TrainingState, charged_once, costs_nothing_yet, site_ledger
from mammo_fed.client.policy import SiteFile, check_declaration, read_site_file
from mammo_fed.client.rounds.masked_sums import MaskedSums
from mammo_fed.client.rounds.replies import (
    Prepared,
    Release,
    accepted,
    check_arrays,
    event_of,
    mixed,
    refusal,
    reply_from_bytes,
    reply_to_bytes,
    sent_again,
    update_without_parameters,
)
from mammo_fed.client.rounds.run_memory import RunLost, RunMemory
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import Cohort
from mammo_fed.data.run_cohorts import limit_images_per_patient, load_pool
from mammo_fed.errors import DataError, LedgerError, LedgerUnavailable, PolicyRefused, SiteNotReady, WeightsError
from mammo_fed.federation.protocol.payload import PublicPayload
from mammo_fed.federation.protocol.replies import Accepted, Refusal, Update
from mammo_fed.federation.protocol.secure_messages import Answer, Question
from mammo_fed.federation.protocol.site_schedule import plan_for_site
from mammo_fed.federation.protocol.task import Declaration, RoundTask, task_hash
from mammo_fed.federation.secure_aggregation.double_masks import Parcel, secure_task_hash
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor, denormals_flushed
from mammo_fed.models.networks import network_spec, write_flat_network
from mammo_fed.models.whitening import contributing_rows
from mammo_fed.privacy.events import full_batch
from mammo_fed.privacy.ledger.ledger import Ledger, Withdrawn
from mammo_fed.privacy.mechanisms.poisson_sgd import PublicBatches
from mammo_fed.privacy.mechanisms.unit_descent import unit_gradient
from mammo_fed.privacy.patient_identity import count_patients
from mammo_fed.training.local import SiteFeatures

__all__ = ["Site", "open_site"]

logger = logging.getLogger(__name__)

# What passes by itself, or when the run is declared again.
MISHAPS = (RunLost, LedgerUnavailable, OSError)


class Site:
    """Answers for one hospital. Everything it returns is covered by an event, or public by the site's policy."""

    def __init__(self, file: SiteFile) -> None:
        self.file = file
        self.folder = Path(file.folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cache = ArrayCache(Path(file.cache))
        pool = load_pool(file.data, file.share, cache=self._cache)
        self._pool = pool
        self._rows = limit_images_per_patient(pool.cohort, pool.rows[file.index], most=file.policy.max_images_per_patient)
        self.cohort: Cohort = pool.cohort.select(self._rows, name=file.site)
        self._runs = RunMemory(self.folder)
        self._prepared: dict[str, Prepared] = {}
        if self.cohort.num_patients < file.policy.min_patients:
            # Here and not when a run is declared: what a server hears then depends on declared numbers alone.
            raise DataError(
                f"the cohort has {self.cohort.num_patients} patients, and min_patients={file.policy.min_patients}: the site "
                "takes no part; check [policy] in the site's file"
            )
        if len(np.unique(self.cohort.labels)) == 1:
            logger.warning("site %s: all training labels are of one class; only this log says so", file.site)

    def declare(self, declaration: Declaration, payload: NDArray[np.float32]) -> Accepted:
        """Accept a run: check it against the policy, price it whole in the ledger, and make the features.

        Args:
          declaration: all that the run will ask.
          payload: float32, flat: the public things it starts from; see mammo_fed.federation.protocol.payload.

        Raises:
          PolicyRefused: If the site's policy forbids the run.
          DataError: If withdrawals left fewer patients than the policy's least number.
          PrivacyRefused: If the site's budget would be passed.
          WeightsError: If the site holds other backbone weights than the server.
        """
        check_declaration(declaration, self.file.policy, public=self.cohort.public)
        self._runs.check_same(declaration)
        prepared = self._prepare(declaration, PublicPayload.read(payload, declaration), begins=True)
        with self._ledger(declaration) as ledger:
            reply = accepted(self.file, self.cohort, ledger, declaration, events=prepared.schedule.events())
        self._runs.keep(declaration, payload)
        known = self._prepared.get(declaration.run_id)
        if known is not None and known.withdrawn.seq == prepared.withdrawn.seq:
            # Declared again in the middle of the run: what is kept between rounds goes on.
            prepared = replace(prepared, optimizer=known.optimizer)
        self._prepared[declaration.run_id] = prepared
        return reply

    def declaration_of(self, run_id: str) -> Declaration:
        """What a run was declared with here; raises InvalidSetting if it never was accepted."""
        return self._runs.declaration(run_id)

    def masked_sum_stage(self, question: Question) -> Answer:
        """A stage of a masked sum before or after the task itself; it touches no patient's data.

        Raises:
          PolicyRefused: If the run was not declared with masked sums, or the round was opened for other survivors.
          InvalidSetting: If the question is not of this run, or comes at the wrong time.
        """
        try:
            declaration = self._declared(question.run_id)
        except RunLost as error:
            if not self._costs_nothing_yet(question.run_id, question.round_index):
                raise
            raise SiteNotReady(f"round {question.round_index} is not answered, and costs nothing: {error}") from error
        if declaration.aggregation == "plain" or not 0 <= question.round_index <= declaration.rounds:
            raise PolicyRefused(f"round {question.round_index} of this run was not declared as a masked sum")
        return self._sums(question.run_id).answer(declaration.terms(question.round_index), question)

    def round(
        self,
        task: RoundTask,
        feature_mean: NDArray[np.float32],
        arrays: NDArray[np.float32],
        parcels: Sequence[Parcel] | None = None,
    ) -> Update | Refusal:
        """As `_round`; a mishap before anything is reserved, which passes or which a new declaration mends, is told apart.

        Raises:
          SiteNotReady: If what the run was declared with is lost, or the disk is full, and the round is not reserved.
          MammoFedError: As `_round`.
        """
        try:
            return self._round(task, feature_mean, arrays, parcels)
        except MISHAPS as error:
            if not self._costs_nothing_yet(task.run_id, task.round_index):
                raise
            raise SiteNotReady(f"round {task.round_index} is not answered, and costs nothing: {error}") from error

    def _round(
        self,
        task: RoundTask,
        feature_mean: NDArray[np.float32],
        arrays: NDArray[np.float32],
        parcels: Sequence[Parcel] | None,
    ) -> Update | Refusal:
        """One round: reserve, train, store the reply, settle, and only then return it.

        The same task again gets the stored reply; another task for a round that was answered is refused. Who has withdrawn by
        the time that the reply is stored has no part in it.

        Args:
          task, feature_mean, arrays: what is asked, and what it starts from.
          parcels: the other sites' shares where the run was declared with masked sums: the reply is masked.

        Raises:
          InvalidSetting: If the run was never declared here, or the task is not of it.
          DataError: If withdrawals left fewer patients than the policy's least number; nothing is charged then.
          PrivacyRefused: If the ledger refuses, or the update is asked for in another form than was declared.
        """
        prepared = self._prepared.get(task.run_id)
        declaration = self._declared(task.run_id) if prepared is None else prepared.declaration
        if (parcels is None) != (declaration.aggregation == "plain"):
            raise PolicyRefused(
                f"the run was declared with aggregation={declaration.aggregation}: nothing else leaves this site"
            )
        check_arrays(declaration, task, feature_mean, arrays)
        content = task_hash(task, feature_mean=feature_mean, parameters=arrays)
        roster = None
        if parcels is not None:
            roster, present = self._sums(task.run_id).accept(declaration.terms(task.round_index), parcels)
            content = secure_task_hash(content, roster, present)
        if prepared is None:
            if (stored := self._stored(declaration, task, content)) is not None:
                return sent_again(self.file, reply_from_bytes(stored))
            prepared = self._recall(task.run_id)
        event = event_of(prepared.schedule, task)
        with self._ledger(declaration) as ledger:

            def train(optimizer: TrainingState | None) -> bytes:
                current = self._without_withdrawn(ledger, task.run_id, prepared)
                if current is not prepared and optimizer is not None:
                    optimizer.clear()
                release = Release(
                    site=self.file.site,
                    images=self.file.policy.public_images,
                    prepared=current,
                    task=task,
                    event=event,
                    feature_mean=feature_mean,
                    arrays=arrays,
                )
                update = update_without_parameters(self.file, ledger, declaration, task, event=event, content=content)
                if roster is None:
                    return reply_to_bytes(replace(update, parameters=release.plain(optimizer)))
                return reply_to_bytes(replace(update, masked=release.masked(self._sums(task.run_id), roster, optimizer)))

            reply = charged_once(
                ledger,
                Charge(run_id=task.run_id, round_index=task.round_index, task_hash=content, events=(event,)),
                train=train,
                failed=lambda: reply_to_bytes(refusal(self.file, "internal")),
                state=prepared.optimizer,
                admit=lambda: self._check_enough(ledger.withdrawn(self.cohort.patients.tolist())),
            )
        if task.round_index == declaration.rounds:
            # Nothing is trained for this run any more: its features and its payload make room.
            self._prepared.pop(task.run_id, None)
            self._runs.end(task.run_id)
        return sent_again(self.file, reply_from_bytes(reply))

    @property
    def goes_on(self) -> bool:
        """Whether this process holds what a later round takes up: an optimizer that goes on, and that no file has."""
        return any(prepared.optimizer for prepared in self._prepared.values())

    def _stored(self, declaration: Declaration, task: RoundTask, content: str) -> bytes | None:
        """The reply to a task that was answered before, which needs nothing that the run was prepared with."""
        with self._ledger(declaration) as ledger:
            return ledger.stored_reply(run_id=task.run_id, round_index=task.round_index, task_hash=content)

    def _prepare(self, declaration: Declaration, payload: PublicPayload, *, begins: bool) -> Prepared:
        """Charge the run, or enrol in it who is new in the cohort, and only then look at the patients' images.

        Args:
          declaration, payload: of the run.
          begins: whether it is declared now; one that goes on may still have replies to send again, however few are left.
        """
        policy = self.file.policy
        schedule = plan_for_site(
            declaration, public_images=policy.public_images, max_images_per_patient=policy.max_images_per_patient
        )
        gradient = unit_gradient(declaration.mechanism, dims=declaration.dims)
        if self.file.threads:
            torch.set_num_threads(self.file.threads)
        extractor = self._extractor(declaration, payload)
        if extractor.weights_sha256 != declaration.weights_sha256:
            raise WeightsError("this site's backbone weights differ from the server's; install the same weights on both sides")
        self._check_possible(extractor, declaration, payload)
        patients = sorted(set(self.cohort.patients.tolist()))
        with self._ledger(declaration) as ledger:
            if begins:
                self._check_enough(ledger.withdrawn(patients))
            ledger.declare(run_id=declaration.run_id, schedule=schedule.events(), patients=patients, account=policy.account)
            withdrawn = ledger.withdrawn(patients)
        beside = len(payload.labels) > 0 and declaration.sampler == "separate"
        return Prepared(
            declaration=declaration,
            schedule=schedule,
            data=self._data(declaration, payload, extractor, withdrawn),
            withdrawn=withdrawn,
            public=PublicBatches(
                features=payload.features,
                labels=payload.labels,
                batch_size=declaration.batch_size,
                weight=declaration.augment_weight,
            )
            if beside
            else None,
            optimizer={} if declaration.keep_optimizer else None,
            gradient=gradient,
        )

    def _without_withdrawn(self, ledger: Ledger, run_id: str, prepared: Prepared) -> Prepared:
        """`prepared`, or the run made anew without those who withdrew since; who has withdrawn is asked after the reservation.

        What is kept between rounds begins afresh at every withdrawal, whoever it was: so it says nothing about who is here.
        """
        withdrawn = ledger.withdrawn(self.cohort.patients.tolist())
        if withdrawn.seq == prepared.withdrawn.seq:
            return prepared
        declaration = prepared.declaration
        payload = self._payload(declaration)
        data = self._data(declaration, payload, self._extractor(declaration, payload), withdrawn)
        if prepared.optimizer is not None:
            prepared.optimizer.clear()
        self._prepared[run_id] = replace(prepared, data=data, withdrawn=withdrawn)
        return self._prepared[run_id]

    def _data(
        self, declaration: Declaration, payload: PublicPayload, extractor: Extractor, withdrawn: Withdrawn
    ) -> SiteFeatures:
        """The features of all patients but the withdrawn; every other patient's are what they were with them."""
        gone = sorted(withdrawn.patients)
        stay = ~np.isin(self.cohort.patients, gone)
        rows = self._pool.rows[self.file.index]
        blocks = self._blocks(extractor, rows[np.isin(self._pool.cohort.patients[rows], gone)])
        # With nobody left nothing is trained, and stored replies are sent again.
        features = np.zeros((0, declaration.dims), np.float32)
        if stay.any():
            with denormals_flushed():
                features = payload.whitening(
                    [block[self._rows[stay]] for block in blocks], normalize=declaration.model.norm == "unit"
                )
        data = SiteFeatures(
            features=contributing_rows(features, self.cohort.present[stay]),
            labels=self.cohort.labels[stay],
            units=np.unique(self.cohort.unit_index(declaration.unit)[stay], return_inverse=True)[1].astype(np.int64),
            public_images=self.file.policy.public_images,
        )
        return mixed(data, payload) if declaration.mixed_images else data

    def _blocks(self, extractor: Extractor, gone: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
        """Descriptors of the pool; where they are not on the disk yet, they are made with black patches in place of `gone`."""
        pixels, fingerprint = self._pool.cohort.pixels, self._pool.fingerprint
        if len(gone) and not extractor.cached(fingerprint):
            pixels = pixels.copy()
            pixels[gone] = 0.0
            fingerprint = hashlib.sha256(fingerprint.encode() + gone.astype("<i8").tobytes()).hexdigest()
        return extractor.blocks(pixels, fingerprint=fingerprint)

    def _check_possible(self, extractor: Extractor, declaration: Declaration, payload: PublicPayload) -> None:
        """Describe a black patch as the patients' will be: settings that cannot be are refused before they are charged."""
        pixels = self._pool.cohort.pixels
        if not extractor.cached(self._pool.fingerprint):
            black = extractor.compute(np.zeros((1, *pixels.shape[1:]), np.float32), flips=extractor.spec.flips)
            payload.whitening(black, normalize=declaration.model.norm == "unit")

    def _check_enough(self, withdrawn: Withdrawn) -> None:
        """Raise DataError where too few patients are left; the server hears of it as of any fault at the site."""
        if not withdrawn.patients:
            # The whole cohort was counted when the site was opened.
            return
        left = count_patients(self.cohort.patients[~np.isin(self.cohort.patients, sorted(withdrawn.patients))])
        if left < self.file.policy.min_patients:
            raise DataError(
                f"withdrawals until {withdrawn.at} left {left} patients in the cohort, and min_patients="
                f"{self.file.policy.min_patients}: the site takes no further part; check [policy] in the site's file"
            )

    def _extractor(self, declaration: Declaration, payload: PublicPayload) -> Extractor:
        """The extraction that the declaration asks for, with the backbone that came with it if one did."""
        spec = extractor_spec(declaration.model, seed=0)
        if len(payload.network):
            (backbone,) = spec.backbones
            # By what came, not by what was declared: a wrong network must not stand where the right one will be looked for.
            name = hashlib.sha256(np.ascontiguousarray(payload.network, "<f4").tobytes()).hexdigest()
            path = self._cache.root / "networks" / f"{name}.safetensors"
            if not path.exists():
                write_flat_network(path, payload.network, backbone, image_size=spec.input_size)
            spec = replace(spec, backbones=(network_spec(backbone, path),))
        return Extractor(spec, cache=self._cache)

    def _costs_nothing_yet(self, run_id: str, round_index: int) -> bool:
        """Whether the run is in the ledger and the round is not; False where the ledger cannot say."""
        try:
            return costs_nothing_yet(self.file, run_id=run_id, round_index=round_index)
        except LedgerError:
            return False

    def _ledger(self, declaration: Declaration) -> AbstractContextManager[Ledger]:
        return site_ledger(self.file, usual="gdp" if full_batch(declaration.mechanism) else "declared")

    def _sums(self, run_id: str) -> MaskedSums:
        return MaskedSums(self._runs.folder(run_id), self.file.site)

    def _declared(self, run_id: str) -> Declaration:
        """The run's declaration, checked against the policy again: it may have changed since."""
        declaration = self._runs.declaration(run_id)
        check_declaration(declaration, self.file.policy, public=self.cohort.public)
        return declaration

    def _payload(self, declaration: Declaration) -> PublicPayload:
        try:
            return PublicPayload.read(self._runs.payload(declaration.run_id), declaration)
        except DataError as error:
            raise RunLost(f"what run {declaration.run_id} starts from is damaged; the run is declared again") from error

    def _recall(self, run_id: str) -> Prepared:
        declaration = self._declared(run_id)
        prepared = self._prepare(declaration, self._payload(declaration), begins=False)
        self._prepared[run_id] = prepared
        return prepared


@lru_cache(maxsize=128)
def open_site(path: Path) -> Site:
    """The site that a site file describes; opened once in a process."""
    return Site(read_site_file(path))
