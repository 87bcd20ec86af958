"""Of which images an annotation is: references by SOP Instance UID (PS3.3, 10.3 and C.12.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydicom import Dataset

from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.headers import text_of

__all__ = ["check_refers", "first_item", "instances", "items_of", "uids_of"]

# Nothing about one mammogram needs more items of a sequence.
MOST_ITEMS = 100_000


def items_of(header: Dataset, name: str) -> list[Dataset]:
    """Items of a sequence; none where it is absent or no sequence.

    Raises:
      Skipped: If there are too many.
    """
    value = header.get(name)
    if value is None or isinstance(value, (str, bytes, int, float)):
        return []
    items = [item for item in value if isinstance(item, Dataset)]
    if len(items) > MOST_ITEMS:
        raise Skipped("too_large", f"the annotation's {name} has {len(items)} items; at most {MOST_ITEMS} are read")
    return items


def first_item(header: Dataset, name: str) -> Dataset:
    """The first item of a sequence, or an empty one."""
    return next(iter(items_of(header, name)), Dataset())


def uids_of(image: Dataset) -> frozenset[str]:
    """UIDs under which an annotation may know a mammogram: its own, and those of sources whose pixels lie where its own do.

    PS3.3, 10.3 and C.8.11.7: a FOR PRESENTATION image names the FOR PROCESSING image that it was made of, and says in Spatial
    Locations Preserved whether locations found on that one hold on this one.
    """
    sources = (
        text_of(source, "ReferencedSOPInstanceUID")
        for source in items_of(image, "SourceImageSequence")
        if text_of(source, "SpatialLocationsPreserved").upper() == "YES"
    )
    return frozenset(uid for uid in (text_of(image, "SOPInstanceUID"), *sources) if uid)


def instances(items: Iterable[Dataset]) -> Iterator[str]:
    """SOP Instance UIDs that references name."""
    for item in items:
        uid = text_of(item, "ReferencedSOPInstanceUID")
        if uid:
            yield uid


def check_refers(named: Iterable[str], uids: frozenset[str]) -> None:
    """Check that a mammogram is among the images that an annotation names, if it names any.

    Raises:
      Skipped: If it is not.
    """
    found = set(named)
    if found and not found & uids:
        raise Skipped("mask_mismatch", "the annotation is of other images than this mammogram")
