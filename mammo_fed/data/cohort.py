"""The cohort: one typed table whatever the source, and a fingerprint of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import DataError
from mammo_fed.privacy.patient_identity import count_patients, patient_index, require_identifier, respelt

__all__ = ["BENIGN", "MALIGNANT", "Cohort", "concatenate", "fingerprint", "require_both_classes"]

BENIGN: Final = 0
MALIGNANT: Final = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Mass patches of one site or one evaluation set.

    Attributes:
      name: what people call the set, for messages and the record; never a patient's name.
      pixels: float32, shape (images, size, size), in [0, 1] whatever the source's bit depth.
      labels: int64, shape (images,): MALIGNANT = 1 or BENIGN = 0.
      patients: str, shape (images,): whose image it is, each patient in one spelling (`patient_identity`).
      images: str, shape (images,): identifier of the patch, unique in the cohort.
      views: str, shape (images,): "CC", "MLO" or "" where unknown.
      splits: str, shape (images,): "train", "val", "test" or "external"; a patient is in one split only.
      public: whether the patients' data is declared public (a phantom, a published set). Decides what a record may say.
    """

    name: str
    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]
    patients: NDArray[np.str_]
    images: NDArray[np.str_]
    views: NDArray[np.str_]
    splits: NDArray[np.str_]
    public: bool

    def __post_init__(self) -> None:
        count = len(self.pixels)
        for column in ("labels", "patients", "images", "views", "splits"):
            if len(getattr(self, column)) != count:
                raise DataError(f"cohort {self.name}: column {column} has {len(getattr(self, column))} rows, pixels {count}")
        if count == 0:
            raise DataError(f"cohort {self.name} has no images; check data.root and the split")
        if self.pixels.ndim != 3 or self.pixels.dtype != np.float32:
            raise DataError(f"cohort {self.name}: pixels must be float32 of shape (images, height, width)")
        unknown = sorted(set(np.unique(self.labels).tolist()) - {BENIGN, MALIGNANT})
        if unknown:
            raise DataError(f"cohort {self.name}: labels {unknown} are unknown; use 1 for malignant and 0 for benign")
        if len(np.unique(self.images)) != count:
            raise DataError(f"cohort {self.name}: two rows have the same image identifier; make them unique")
        self._check_patients()

    def _check_patients(self) -> None:
        patients = self.patients.tolist()
        for position, patient in enumerate(patients, start=1):
            require_identifier(patient, where=f"cohort {self.name}, image {position} of {len(patients)}")
        if (pair := respelt(patients)) is not None:
            raise DataError(
                f"cohort {self.name}: images {pair[0] + 1} and {pair[1] + 1} are of one patient in two spellings, which "
                "differ only in case, spaces or Unicode form, or in what is not seen; write each patient one way"
            )
        pairs = set(zip(patients, self.splits.tolist(), strict=True))
        if len(pairs) != len({patient for patient, _ in pairs}):
            raise DataError(f"cohort {self.name}: a patient is in more than one split; split by patient, not by image")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_patients(self) -> int:
        """Number of distinct patients."""
        return count_patients(self.patients)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (int(self.pixels.shape[1]), int(self.pixels.shape[2]))

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """Whether an image shows anything, bool, shape (images,): one of which every pixel is zero contributes nothing.

        Here alone it is decided, for every release: the neighbouring cohort that is priced is that of a unit which contributes
        nothing, and a black image is one that is not there. Sizes count it all the same: they are constants.
        """
        shown: NDArray[np.bool_] = np.any(self.pixels != 0, axis=(1, 2))
        return shown

    def unit_index(self, unit: str) -> NDArray[np.int64]:
        """Dense index of the protected unit of every image, int64, shape (images,), for unit "patient" or "image".

        All images of a patient have one index, by the identity that the ledger charges by.
        """
        if unit == "image":
            return np.arange(len(self), dtype=np.int64)
        return patient_index(self.patients)

    @cached_property
    def content_hash(self) -> str:
        """`fingerprint` without a key, made once; for public cohorts only."""
        return _hash(self, None)

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_], *, name: str | None = None) -> Cohort:
        """The rows that `rows` indexes, in its order, as a cohort of their own."""
        return Cohort(
            name=name or self.name,
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            patients=self.patients[rows],
            images=self.images[rows],
            views=self.views[rows],
            splits=self.splits[rows],
            public=self.public,
        )


def concatenate(cohorts: Sequence[Cohort], *, name: str) -> Cohort:
    """Several cohorts as one, in the order given; public only if all are.

    Raises:
      DataError: If image sizes differ, identifiers repeat, or a patient ends up in two splits.
    """
    sizes = {cohort.image_size for cohort in cohorts}
    if len(sizes) != 1:
        raise DataError(f"cohort {name}: image sizes {sorted(sizes)} differ; resize the sources to one size")
    return Cohort(
        name=name,
        pixels=np.concatenate([cohort.pixels for cohort in cohorts]),
        labels=np.concatenate([cohort.labels for cohort in cohorts]),
        patients=np.concatenate([cohort.patients for cohort in cohorts]),
        images=np.concatenate([cohort.images for cohort in cohorts]),
        views=np.concatenate([cohort.views for cohort in cohorts]),
        splits=np.concatenate([cohort.splits for cohort in cohorts]),
        public=all(cohort.public for cohort in cohorts),
    )


def fingerprint(cohort: Cohort, *, key: bytes | None) -> str:
    """Hash of pixels, labels and patient grouping, as 64 hex digits; the same rows in the same order give the same value.

    Args:
      cohort: what to hash.
      key: secret of the site, 16 to 64 bytes. None is allowed for public cohorts only: an unkeyed hash of private images
        tells anyone who holds an image whether it is in the cohort.

    Raises:
      DataError: If `key` is None and the cohort is not public.
    """
    if key is None and not cohort.public:
        raise DataError(f"cohort {cohort.name} is not public: its fingerprint needs the site's key")
    if key is None:
        return cohort.content_hash
    return _hash(cohort, key)


def _hash(cohort: Cohort, key: bytes | None) -> str:
    digest = hashlib.blake2b(key=key or b"", digest_size=32)
    digest.update(str(cohort.pixels.shape).encode())
    digest.update(np.ascontiguousarray(cohort.pixels).tobytes())
    digest.update(cohort.labels.astype("<i8").tobytes())
    digest.update(cohort.unit_index("patient").astype("<i8").tobytes())
    return digest.hexdigest()


def require_both_classes(cohort: Cohort) -> None:
    """Raise DataError where an evaluation set has one class only: no AUROC exists there."""
    if len(np.unique(cohort.labels)) != 2:
        only = "malignant" if cohort.labels[0] == MALIGNANT else "benign"
        raise DataError(f"evaluation set {cohort.name} has {only} images only; it needs both classes for an AUROC")
