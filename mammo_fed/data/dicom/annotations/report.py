"""Findings of structured reports: of detection programs (PS3.16, TID 4000), measurements (TID 1500), plain coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from pydicom import Dataset

from mammo_fed.data.dicom.annotations.content import Item, concept, content_of, value_code
from mammo_fed.data.dicom.annotations.references import check_refers, first_item, instances, items_of
from mammo_fed.data.dicom.annotations.regions import Region, Shape, one_region
from mammo_fed.data.dicom.annotations.shapes import graphic_points, shape_of
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.headers import text_of

__all__ = ["reported_finding"]

Kind = Literal["mass", "other", "unsaid", "hidden"]
# PS3.16, annex D, and the codes of findings in SNOMED CT and in its identifiers of before (CID 6014 to 6016, 6054).
SINGLE_FINDING, MEASUREMENTS, FINDING = "111059", "125007", "121071"
OUTLINES: Final = ("111041", "111030")
RENDERING, NOT_SHOWN = "111056", "111152"
# Tracking identifiers, and a short label.
TRACKING: Final = ("112039", "112040", "125309")
MASSES: Final = frozenset({"129788004", "F-01791", "111459", "111462", "4147007", "M-03000"})
OTHERS: Final = frozenset(
    (
        "129792006",
        "F-01795",  # distortion of the breast's architecture
        "129790003",
        "F-01793",
        "129789007",
        "F-01792",  # asymmetric tissue
        "129769006",
        "F-01775",
        "129770007",
        "F-01776",
        "309587003",
        "F-8A057",
        "129748003",  # calcifications
        "127189005",
        "DC-721C4",
        "68171009",
        "T-C4710",
        "443808008",
        "T-C430B",
        "59441001",
        "T-C4000",  # lymph nodes
        "129715009",
        "F-01710",
        "129793001",
        "F-01796",
        "111100",
        "111101",
        "111287",  # the breast, its density, the image
        "24142002",
        "T-04100",
        "129796009",
        "F-01799",
        "129797000",
        "F-0179A",
        "95324001",
        "D0-00050",  # nipple and skin
        "111112",
        "111113",
        "111111",
        "129795008",
        "F-01798",
        "129794007",
        "F-01797",
        "79654002",
        "M-36300",  # in the skin; ligaments, ducts, edema
        "40388003",
        "A-04010",
        "111099",
        "111102",  # implants, regions that somebody chose, no lesion
    )
)
PLACED: Final = ("SCOORD", "SCOORD3D")


def reported_finding(annotation: Dataset, *, uids: frozenset[str], region: str) -> Shape:
    """Where a finding of a report lies on a mammogram.

    Args:
      annotation: the report.
      uids: of the mammogram, as `uids_of` gives them.
      region: number of the finding among those on this mammogram, from 1, in the order of the report, or its tracking
        identifier, short label or the meaning of its finding; "" where only one is a mass that is to be shown.

    Raises:
      Skipped: If the report is of other images, marks nothing that is a mass, or several.
    """
    items = content_of(annotation)
    evidence = set(_evidence(annotation))
    regions: list[Region] = []
    elsewhere: set[str] = set()
    lost = False
    for holder, drawn in _holders(items):
        named = {item.index: _images(items, item) or _images(items, items[holder]) or evidence for item in drawn}
        ours = [item for item in drawn if named[item.index] & uids]
        elsewhere |= set().union(*named.values())
        # A report of several images that does not say on which one it drew.
        lost = lost or any(len(named[item.index]) != 1 for item in drawn if not _images(items, item))
        if ours:
            holding = items[holder]
            regions.append(
                Region(
                    number=len(regions) + 1,
                    labels=tuple(filter(None, _labels(items, holding))),
                    shapes=_shapes(ours, holding),
                    kind=_kind(items, holding),
                )
            )
    if lost:
        raise Skipped("unreadable_annotation", "the report is of several images, and does not say on which its coordinates are")
    if not regions:
        check_refers(elsewhere | evidence, uids)
    return one_region(regions, region)


def _holders(items: Sequence[Item]) -> Iterator[tuple[int, list[Item]]]:
    """Each finding, by its index, with the coordinates that are its own: not those of findings inside of it."""
    drawn: dict[int, list[Item]] = {}
    for item in items:
        if item.kind not in PLACED:
            continue
        above: int | None = item.parent
        while above is not None and concept(items[above]) not in (SINGLE_FINDING, MEASUREMENTS):
            above = items[above].parent
        drawn.setdefault(item.index if above is None else above, []).append(item)
    yield from sorted(drawn.items())


def _shapes(drawn: Sequence[Item], holder: Item) -> tuple[Shape, ...]:
    """Outlines where there are any; else what measurements are taken in, if it is closed: a diameter is a line."""
    if any(item.kind == "SCOORD3D" for item in drawn):
        raise Skipped("unreadable_annotation", "the report's coordinates are in space, and a mammogram has no place there")
    alone = [item for item in drawn if item is holder or concept(item) in OUTLINES]
    found: dict[bytes, Shape] = {}
    for item in alone or drawn:
        points = graphic_points(item.dataset)
        # A program repeats the same coordinates for each number that it takes of them.
        key = points.tobytes()
        shape = shape_of(text_of(item.dataset, "GraphicType").upper(), points, closed=concept(item) in OUTLINES)
        if shape is not None:
            found.setdefault(key, shape)
    return tuple(found.values())


def _kind(items: Sequence[Item], holder: Item) -> Kind:
    inside = [items[index] for index in holder.children]
    if any(concept(item) == RENDERING and value_code(item) == NOT_SHOWN for item in inside):
        return "hidden"
    if concept(holder) == SINGLE_FINDING:
        return "mass" if value_code(holder) in MASSES else "other"
    codes = {value_code(item) for item in inside if concept(item) == FINDING}
    return "mass" if codes & MASSES else "other" if codes & OTHERS else "unsaid"


def _labels(items: Sequence[Item], holder: Item) -> Iterator[str]:
    for item in (holder, *(items[index] for index in holder.children)):
        if concept(item) in TRACKING:
            yield text_of(item.dataset, "TextValue") or text_of(item.dataset, "UID")
        elif concept(item) in (SINGLE_FINDING, FINDING):
            # Viewers write what a user called a region as the meaning of its finding.
            yield text_of(first_item(item.dataset, "ConceptCodeSequence"), "CodeMeaning")


def _images(items: Sequence[Item], item: Item) -> set[str]:
    """Images that an item names among its children (by value or by reference)."""
    found = (items[index].dataset for index in item.children if items[index].kind == "IMAGE")
    return {uid for one in found for uid in instances(items_of(one, "ReferencedSOPSequence"))}


def _evidence(annotation: Dataset) -> Iterator[str]:
    for name in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in items_of(annotation, name):
            for series in items_of(study, "ReferencedSeriesSequence"):
                yield from instances(items_of(series, "ReferencedSOPSequence"))
