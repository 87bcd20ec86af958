"""A synthetic set as an artefact: images, a table, and where they come from, all under one hash.

    SET/images/000000_benign.png ...     8-bit grey patches
    SET/images.csv                       image, label, sha256 of each file
    SET/provenance.json                  generator, seed, whom it saw, what that cost, licence, and the hash of all of it

The hash has no key: it finds damage and mix-ups, not a forger. Who must know that a set is a certain one compares its hash with
one that came another way.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mammo_fed.common.private_files import new_folder
from mammo_fed.common.serialization import build
from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.known_patients import KnownPatients, Numbering
from mammo_fed.data.sources.rows import PatchRow, cohort_from_rows
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.privacy.events import Unit
from mammo_fed.privacy.names import LedgerScope

__all__ = [
    "PROVENANCE_NAME",
    "Donor",
    "GeneratorOrigin",
    "SetPrivacy",
    "SetProvenance",
    "image_digests",
    "is_synthetic_set",
    "read_provenance",
    "read_synthetic_set",
    "write_synthetic_set",
]

PROVENANCE_NAME: Final = "provenance.json"
FORMAT: Final = "mammo-fed synthetic set 2"
# Sets that do not say who the donor's patients are.
FORMAT_1: Final = "mammo-fed synthetic set 1"
NOT_IN_FORMAT_1: Final[Mapping[str, Any]] = {"numbering": "", "patient_digests": []}
TABLE_NAME: Final = "images.csv"
IMAGES_NAME: Final = "images"
COLUMNS: Final = ("image", "label", "sha256")
WORDS: Final[Mapping[int, str]] = {MALIGNANT: "malignant", BENIGN: "benign"}
DIGEST_BYTES: Final = 8
MOST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class GeneratorOrigin:
    """Which generator drew the images.

    Attributes:
      kind: "mcgan", or "external" for images that came from elsewhere.
      sha256: of its weights; empty for an external one.
      settings_sha256: of what it was trained with; empty for an external one.
      step: of the training that it is taken from; 0 for an external one.
      chosen: "last" step, or "by request": if a look at real images led to the choice, no epsilon covers that.
    """

    kind: Literal["mcgan", "external"]
    sha256: str
    settings_sha256: str
    step: int
    chosen: Literal["last", "by request", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Donor:
    """Whose patients the generator saw; every field is public.

    Attributes:
      name: what the donor calls itself, or the name of a published data set.
      source: the kind of cohort.
      public: whether the cohort is published.
      patients, images: numbers, declared public; 0 where unknown.
      fingerprint: of the cohort where it is public, else a random identifier; empty where unknown.
      image_digests: of a public cohort, 16 hex digits for each image: they tell whether a run trains on them too.
      numbering, patient_digests: of a public cohort, who its patients are (mammo_fed.data.known_patients): they tell whether a
        run trains on other images of them. Empty where unknown.
    """

    name: str
    source: str
    public: bool
    patients: int
    images: int
    fingerprint: str
    image_digests: tuple[str, ...]
    numbering: Numbering = ""
    patient_digests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.public and (self.image_digests or self.patient_digests or self.numbering):
            raise DataError(f"donor {self.name} is not public: digests of its images and patients tell who they are")

    @property
    def known(self) -> KnownPatients:
        """Its patients, as they are compared."""
        return KnownPatients(numbering=self.numbering, digests=self.patient_digests)


@dataclass(frozen=True, kw_only=True)
class SetPrivacy:
    """What the generator promises the donor's patients.

    Attributes:
      unit: whose data is protected.
      epsilon, delta: of the whole training.
      patient_epsilon: towards a patient with as many images as were allowed.
      accountant: who priced it.
      noise: "operating system", or "injected", which voids the guarantee.
      events: the privacy events, as mammo_fed.privacy.events.PrivacyEvent.as_dict gives them, in canonical JSON.
      ledger: "run" where the training stood for itself, "site" where the donor's ledger was charged.
      floating: whether the noise was drawn in floating point; sets of earlier versions do not say.
    """

    unit: Unit
    epsilon: float
    delta: float
    patient_epsilon: float
    accountant: str
    noise: Literal["operating system", "injected"]
    events: str
    ledger: LedgerScope
    floating: bool = False


@dataclass(frozen=True, kw_only=True)
class SetProvenance:
    """Where a synthetic set comes from.

    Attributes:
      generator, donor: see there.
      privacy: what it promises, or None without differential privacy.
      seed: of the drawn images.
      licence: of the images.
      images, malignant, image_size: the set's numbers; `write_synthetic_set` fills them in.
      table_sha256: of images.csv.
      sha256: of everything above; the set's name in records.
    """

    generator: GeneratorOrigin
    donor: Donor
    privacy: SetPrivacy | None
    seed: int
    licence: str
    images: int = 0
    malignant: int = 0
    image_size: int = 0
    table_sha256: str = ""
    sha256: str = ""

    @property
    def kind(self) -> Literal["dp", "no_dp", "unknown"]:
        """In one word: trained with differential privacy, without, or unknown."""
        if self.privacy is not None and self.privacy.noise == "operating system" and math.isfinite(self.privacy.epsilon):
            return "dp"
        return "unknown" if self.donor.source == "unknown" else "no_dp"


def is_synthetic_set(folder: Path) -> bool:
    """Whether the folder claims to be a synthetic set."""
    return (folder / PROVENANCE_NAME).exists()


def write_synthetic_set(
    folder: Path, pixels: NDArray[np.float32], labels: NDArray[np.int64], *, provenance: SetProvenance
) -> SetProvenance:
    """Write a set into a new folder, whole or not at all.

    Args:
      folder: new or empty.
      pixels: float32 in [0, 1], shape (images, side, side); stored as 8 bits.
      labels: int64, shape (images,): MALIGNANT = 1 or BENIGN = 0.
      provenance: without the numbers and hashes.

    Returns:
      The provenance as written.

    Raises:
      InvalidSetting: If the folder holds something.
      DataError: If there is no image, or one is not square.
    """
    if pixels.ndim != 3 or not len(pixels) or pixels.shape[1] != pixels.shape[2] or len(labels) != len(pixels):
        raise DataError(f"images of shape {pixels.shape} with {len(labels)} labels must be square, one label each")
    with new_folder(folder, last=PROVENANCE_NAME) as draft:
        (draft / IMAGES_NAME).mkdir()
        rows = []
        for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            name = f"{number:06d}_{WORDS[label]}.png"
            content = _png(image)
            (draft / IMAGES_NAME / name).write_bytes(content)
            rows.append((name, WORDS[label], hashlib.sha256(content).hexdigest()))
        table = _table(rows)
        (draft / TABLE_NAME).write_bytes(table)
        whole = replace(
            provenance,
            images=len(pixels),
            malignant=int((labels == MALIGNANT).sum()),
            image_size=int(pixels.shape[1]),
            table_sha256=hashlib.sha256(table).hexdigest(),
        )
        whole = replace(whole, sha256=_seal(whole))
        text = json.dumps({"format": _format(whole), **_plain(whole)}, indent=2, sort_keys=True, allow_nan=False)
        (draft / PROVENANCE_NAME).write_text(text + "\n", encoding="utf-8")
    return whole


def read_provenance(folder: Path) -> SetProvenance:
    """Provenance of a set, its own hash checked; the images are not looked at.

    Raises:
      DataError: If it is missing, damaged or of another format.
    """
    path = folder / PROVENANCE_NAME
    try:
        values = json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: the set is damaged; get it again from where it came") from error
    if not isinstance(values, dict) or (format := values.pop("format", None)) not in (FORMAT, FORMAT_1):
        raise DataError(f"{path} is not of format {FORMAT!r}; get the set again, or import it with `mammo-fed gan import`")
    if format == FORMAT_1 and isinstance(values.get("donor"), dict):
        values["donor"] = {**values["donor"], **NOT_IN_FORMAT_1}
    if isinstance(values.get("privacy"), dict):
        values["privacy"] = {"floating": False, **values["privacy"]}
    try:
        found = build(SetProvenance, values, path="")
    except (InvalidSetting, DataError) as error:
        raise DataError(f"{path} is damaged ({error}); get the set again from where it came") from error
    if found.sha256 != _seal(found):
        raise DataError(f"{path} does not have its own hash: it was changed; get the set again from where it came")
    return found


def read_synthetic_set(folder: Path, *, expected_sha256: str | None = None) -> tuple[Cohort, SetProvenance]:
    """Images of a set, in the order of its table, every byte checked.

    Args:
      folder: of the set.
      expected_sha256: the set's hash, where it is known from elsewhere.

    Returns:
      The cohort, declared public, every image a patient of its own; and where it comes from.

    Raises:
      DataError: If a file is missing, additional, damaged or changed, or the set is not the expected one.
    """
    provenance = read_provenance(folder)
    if expected_sha256 is not None and provenance.sha256 != expected_sha256:
        raise DataError(f"{folder} has hash {provenance.sha256[:16]}..., not the expected {expected_sha256[:16]}...")
    table = _content(folder / TABLE_NAME)
    if hashlib.sha256(table).hexdigest() != provenance.table_sha256:
        raise DataError(f"{folder / TABLE_NAME} does not have the hash that {PROVENANCE_NAME} gives; get the set again")
    listed = list(csv.DictReader(io.StringIO(table.decode("utf-8"))))
    found = {entry.name for entry in (folder / IMAGES_NAME).iterdir()} if (folder / IMAGES_NAME).is_dir() else set()
    if strange := sorted(found ^ {row["image"] for row in listed}):
        raise DataError(f"{folder / IMAGES_NAME}: {strange[0]} is missing or does not belong to the set; get the set again")
    title = f"synthetic-{provenance.sha256[:12]}"
    rows = []
    for row in listed:
        path = folder / IMAGES_NAME / row["image"]
        if hashlib.sha256(_content(path)).hexdigest() != row["sha256"]:
            raise DataError(f"{path} does not have the hash that {TABLE_NAME} gives: it was changed; get the set again")
        label = MALIGNANT if row["label"] == WORDS[MALIGNANT] else BENIGN
        identifier = f"{title}/{path.stem}"
        rows.append(PatchRow(path=path, label=label, patient=identifier, image=identifier, split="train"))
    return cohort_from_rows(rows, name=title, public=True), provenance


def image_digests(cohort: Cohort) -> tuple[str, ...]:
    """A digest of each image, 16 hex digits, sorted; for public cohorts only, since whoever holds an image can compare.

    Raises:
      DataError: If the cohort is not public.
    """
    if not cohort.public:
        raise DataError(f"cohort {cohort.name} is not public: digests of its images tell who is in it")
    images = (np.ascontiguousarray(image).tobytes() for image in cohort.pixels)
    return tuple(sorted({hashlib.blake2b(image, digest_size=DIGEST_BYTES).hexdigest() for image in images}))


def _png(image: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def _table(rows: Sequence[tuple[str, str, str]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _seal(provenance: SetProvenance) -> str:
    values = _plain(replace(provenance, sha256=""))
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _format(provenance: SetProvenance) -> str:
    return FORMAT if provenance.donor.patient_digests or provenance.donor.numbering else FORMAT_1


def _plain(provenance: SetProvenance) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(provenance)))
    if _format(provenance) == FORMAT_1:
        # The seal of such a set was made without them.
        for name in NOT_IN_FORMAT_1:
            del values["donor"][name]
    if provenance.privacy is not None:
        for name in ("epsilon", "patient_epsilon"):
            number = getattr(provenance.privacy, name)
            values["privacy"][name] = "inf" if math.isinf(number) else number
        if not provenance.privacy.floating:
            # Written only where it is so: the hash of a set of earlier versions stays what it was.
            del values["privacy"]["floating"]
    return values


def _content(path: Path) -> bytes:
    try:
        if not path.is_file() or path.is_symlink():
            raise DataError(f"{path} is missing or no regular file: the set is not whole; get it again from where it came")
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES} bytes: it is no part of a synthetic set")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
