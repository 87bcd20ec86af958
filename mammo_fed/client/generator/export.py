"""Export of synthetic sets: drawn from a finished training, or imported with their true provenance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mammo_fed.client.generator.custody import Settled, check_paid, settled_generators, site_of
from mammo_fed.client.generator.training_folder import Training, last_step, load_average, read_training
from mammo_fed.data.known_patients import known_patients
from mammo_fed.data.sources.mammo_dp import read_mammo_dp, read_mammo_dp_synthetic
from mammo_fed.data.sources.synthetic_set import (
    Donor,
    GeneratorOrigin,
    SetPrivacy,
    SetProvenance,
    image_digests,
    write_synthetic_set,
)
from mammo_fed.errors import LedgerError
from mammo_fed.privacy.accounting.pricing import epsilon, patient_epsilon
from mammo_fed.privacy.events import events_to_json
from mammo_fed.settings.gan import GanSettings
from mammo_fed.synthesis.sampling import draw_images

__all__ = ["import_paper_set", "sample_set"]

LICENCES: Final = {"phantom": "CC0-1.0 (procedural)", "mammo_dp": "CC-BY-3.0 (derived from CBIS-DDSM)"}
UNKNOWN_LICENCE: Final = "as the donor decides"
PAPER_LICENCE: Final = "Apache-2.0 (RichardObi/mammo_dp; derived from CBIS-DDSM, CC-BY-3.0)"


def sample_set(
    settings: GanSettings,
    run: Path,
    output: Path,
    *,
    count: int,
    seed: int,
    step: int | None = None,
    licence: str | None = None,
    site_folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> SetProvenance:
    """Draw a synthetic set from a finished training and write it with its provenance; post-processing, charged nothing.

    Args:
      settings: of the training.
      run: its folder.
      output: new folder of the set.
      count, seed: number of images, and of their latent numbers.
      step: another step than the last; the provenance says that it was chosen.
      licence: of the images; None is that of the data that was trained on.
      site_folder: of the site whose ledger was charged; None is where it was when the training was resumed last. A training
        without privacy has no ledger.
      progress: called with (images done, images in all).

    Raises:
      InvalidSetting: If it is not known where the site's folder is, or one is given for a training without a site.
      DataError: If the training is not finished, or has no checkpoint of `step`.
      LedgerError: If the ledger that was charged did not settle the generator of that step.
    """
    training = read_training(run)
    if site_folder is not None:
        site_of(training, site_folder)
    settled = None if training.event is None else _settled(settings, run, training, site_folder=site_folder)
    last = last_step(settings, run)
    chosen = last if step is None else step
    average, digest = load_average(settings, run, chosen)
    if settled is not None and chosen != last and settled.checkpoints.get(chosen) != digest:
        raise LedgerError(
            f"--step={chosen} is a generator that the ledger did not settle: there may be another one of that step; leave "
            "--step out for the last"
        )
    pixels, labels = draw_images(average, count=count, seed=seed, progress=progress)
    provenance = SetProvenance(
        generator=GeneratorOrigin(
            kind="mcgan",
            sha256=digest,
            settings_sha256=training.settings_sha256,
            step=chosen,
            chosen="last" if chosen == last else "by request",
        ),
        donor=training.donor,
        privacy=_promise(settings, training),
        seed=seed,
        licence=licence or LICENCES.get(training.donor.source, UNKNOWN_LICENCE),
    )
    return write_synthetic_set(output, pixels, labels, provenance=provenance)


def _settled(settings: GanSettings, run: Path, training: Training, *, site_folder: Path | None) -> Settled:
    """The generators that may be drawn from: those that the training's ledger settled, if the folder holds the last of them."""
    settled = settled_generators(settings, run, training, site_folder=site_folder)
    if settled is None:
        last_step(settings, run)
        raise LedgerError(
            f"the ledger has settled no generator of {run}: end the training with `mammo-fed gan train --resume {run}`"
        )
    check_paid(settings, run, settled)
    return settled


def _promise(settings: GanSettings, training: Training) -> SetPrivacy | None:
    privacy, events = settings.privacy, training.events
    if not events:
        return None
    return SetPrivacy(
        unit=privacy.unit,
        epsilon=epsilon(events, delta=privacy.delta, accountant=privacy.accountant),
        delta=privacy.delta,
        patient_epsilon=patient_epsilon(events, delta=privacy.delta, accountant="pld"),
        accountant=privacy.accountant,
        noise="injected" if training.injected else "operating system",
        events=events_to_json(events),
        ledger="site" if training.at_site else "run",
        floating=privacy.noise == "float",
    )


def import_paper_set(clone: Path, output: Path) -> SetProvenance:
    """The 3,000 images of arXiv:2407.12669 as a synthetic set: their generator saw CBIS-DDSM's training images without privacy.

    Args:
      clone: of RichardObi/mammo_dp.
      output: new folder of the set.

    Raises:
      DataError: If the clone lacks the synthetic or the training images.
    """
    synthetic, train = read_mammo_dp_synthetic(clone), read_mammo_dp(clone, split="train")
    known = known_patients(train, source="mammo_dp")
    provenance = SetProvenance(
        generator=GeneratorOrigin(kind="external", sha256="", settings_sha256="", step=0, chosen="unknown"),
        donor=Donor(
            name="CBIS-DDSM training images",
            source="mammo_dp",
            public=True,
            patients=train.num_patients,
            images=len(train),
            fingerprint=train.content_hash,
            image_digests=image_digests(train),
            numbering=known.numbering,
            patient_digests=known.digests,
        ),
        privacy=None,
        seed=0,
        licence=PAPER_LICENCE,
    )
    return write_synthetic_set(output, synthetic.pixels, synthetic.labels, provenance=provenance)
