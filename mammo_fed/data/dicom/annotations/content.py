"""The tree of a structured report's content items (PS3.3, C.17.3), as a list in the order of the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pydicom import Dataset

from mammo_fed.data.dicom.annotations.references import first_item, items_of
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.headers import text_of

__all__ = ["Item", "concept", "content_of", "value_code"]

MOST_CONTENT: Final = 100_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One content item.

    Attributes:
      index: its place in the list.
      parent: index of the item that holds it; None for the root.
      kind: its value type; "" where it only refers to another item.
      dataset: its attributes.
      children: indices of the items in it; where it holds a reference (PS3.3, C.17.3.2.5), of the item that is referred to.
    """

    index: int
    parent: int | None
    kind: str
    dataset: Dataset
    children: list[int] = field(default_factory=list)


def content_of(report: Dataset) -> list[Item]:
    """All content items, the root first.

    Raises:
      Skipped: If there are too many.
    """
    found: list[Item] = []
    places: dict[tuple[int, ...], int] = {}
    references: list[tuple[int, tuple[int, ...]]] = []
    waiting: list[tuple[int | None, tuple[int, ...], Dataset]] = [(None, (1,), report)]
    while waiting:
        parent, path, dataset = waiting.pop()
        if len(found) >= MOST_CONTENT:
            raise Skipped("too_large", f"the report has more than {MOST_CONTENT} content items")
        item = Item(index=len(found), parent=parent, kind=text_of(dataset, "ValueType").upper(), dataset=dataset)
        found.append(item)
        places[path] = item.index
        if parent is not None:
            target = _target(dataset)
            if target:
                references.append((parent, target))
            else:
                found[parent].children.append(item.index)
        inside = items_of(dataset, "ContentSequence")
        # The last in is the first out.
        waiting.extend((item.index, (*path, place), one) for place, one in reversed(list(enumerate(inside, start=1))))
    for holder, target in references:
        if target in places:
            found[holder].children.append(places[target])
    return found


def concept(item: Item) -> str:
    """Code of an item's name."""
    return text_of(first_item(item.dataset, "ConceptNameCodeSequence"), "CodeValue")


def value_code(item: Item) -> str:
    """Code of a coded item's value."""
    return text_of(first_item(item.dataset, "ConceptCodeSequence"), "CodeValue")


def _target(dataset: Dataset) -> tuple[int, ...]:
    value: Any = dataset.get("ReferencedContentItemIdentifier")
    if value is None:
        return ()
    return (int(value),) if isinstance(value, int) else tuple(int(part) for part in value)
