"""DICOM segmentations (PS3.3, A.51 and C.8.20): one bit, fractions, maps of labels; also minimal ones that describe nothing.

They are read with pydicom alone: libraries for segmentations refuse what lacks a functional group, which is not rare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset

from mammo_fed.data.dicom.annotations.frames import Frames
from mammo_fed.data.dicom.annotations.references import check_refers, first_item, instances, items_of
from mammo_fed.data.dicom.annotations.regions import Named, chosen
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.headers import number_of, text_of

__all__ = ["segmented"]

Mask: TypeAlias = NDArray[np.bool_]
# Breast, and mammary gland: anatomy that programs outline, and no lesion (SNOMED CT, and its identifiers of before).
ANATOMY: Final = frozenset({"76752008", "T-04000", "181131000", "80248007", "T-04030", "73056007", "T-04050", "113257007"})
HALF: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class _Segment(Named):
    frames: tuple[int, ...]
    anatomy: bool = False


def segmented(annotation: FileDataset, *, uids: frozenset[str], shape: tuple[int, int], region: str) -> Mask:
    """What a segment marks on a mammogram: bool, shape `shape`.

    Args:
      annotation: the whole file.
      uids: of the mammogram, as `uids_of` gives them.
      shape: its rows and columns.
      region: number, label or tracking identifier of the segment; "" where only one is on this mammogram.

    Raises:
      Skipped: If the segmentation is of other images or of another size, has several segments to choose from, or is empty.
    """
    size = number_of(annotation, "Rows"), number_of(annotation, "Columns")
    if size != shape:
        words = f"the segmentation has {size[0]} x {size[1]} pixels, the mammogram {shape[0]} x {shape[1]}"
        raise Skipped("mask_mismatch", words)
    frames = Frames(annotation, shape=shape)
    ours = _frames_of(annotation, frames.count, uids)
    kind = _kind(annotation)
    if kind == "labels":
        segments, mask = _labelled(annotation, frames, ours)
    else:
        segments = _described(annotation, _segments_of_frames(annotation, ours))
        whole = _whole(annotation, kind)

        def mask(one: _Segment) -> Mask:
            return _together(whole(frames[index]) for index in one.frames)

    return _choice(segments, mask, region)


def _choice(segments: Sequence[_Segment], mask: Callable[[_Segment], Mask], region: str) -> Mask:
    if region.strip():
        found = mask(chosen(segments, region))
        if not found.any():
            raise Skipped("no_lesion", "the segment is empty")
        return found
    only: Mask | None = None
    for one in segments:
        found = mask(one)
        # A segment of which nothing lies on this mammogram leaves no choice to make.
        if not found.any():
            continue
        if only is not None:
            raise Skipped("several_regions", f"{len(segments)} segments are on this mammogram, and none is chosen")
        if one.anatomy and len(segments) == 1:
            raise Skipped("no_lesion", "the segment says to be the breast, not a lesion")
        only = found
    if only is None:
        raise Skipped("no_lesion", "the segmentation marks nothing on this mammogram")
    return only


def _kind(annotation: Dataset) -> Literal["bits", "fractions", "labels"]:
    bits, said = number_of(annotation, "BitsAllocated"), text_of(annotation, "SegmentationType").rstrip("\0").upper()
    if text_of(annotation, "PhotometricInterpretation").upper() == "MONOCHROME1":
        raise Skipped("unclear_mask", "the segmentation is MONOCHROME1: nobody knows what it marks")
    if bits == 1:
        return "bits"
    if said in ("LABELMAP", "") and (said or len(items_of(annotation, "SegmentSequence")) > 1):
        return "labels"
    return "fractions" if said == "FRACTIONAL" or "MaximumFractionalValue" in annotation else "bits"


def _whole(annotation: Dataset, kind: str) -> Callable[[NDArray[Any]], Mask]:
    """Which pixels of a frame are marked.

    PS3.3, C.8.20.2.3: a fraction is the part that is covered, or how likely it is; half and more is marked.
    """
    if kind == "fractions":
        most = number_of(annotation, "MaximumFractionalValue", otherwise=255)
        if most < 1:
            raise Skipped("unreadable_annotation", "the segmentation's MaximumFractionalValue is 0")
        return lambda frame: frame >= HALF * most
    return _two_valued


def _two_valued(frame: NDArray[Any]) -> Mask:
    """A frame of zeros and one other value, such as 1, or 255 where a program wrote bytes."""
    marked: Mask = frame != 0
    if marked.any() and (frame[marked] != frame.max()).any():
        raise Skipped("unclear_mask", "the segmentation is of one bit by its type, and its pixels have more than two values")
    return marked


def _together(masks: Iterator[Mask]) -> Mask:
    union = next(masks).copy()
    for one in masks:
        union |= one
    return union


def _frames_of(annotation: Dataset, count: int, uids: frozenset[str]) -> list[int]:
    """Frames that are of this mammogram (PS3.3, C.7.6.16.2.6: the derivation of a frame; C.12.2: all that is referred to).

    Raises:
      Skipped: If none is, or it cannot be known which.
    """
    per_frame = items_of(annotation, "PerFrameFunctionalGroupsSequence")
    shared = set(_sources(first_item(annotation, "SharedFunctionalGroupsSequence")))
    named = [set(_sources(group)) or shared for group in per_frame[:count]] or [shared] * count
    if len(named) < count:
        raise Skipped("unreadable_annotation", f"the segmentation describes {len(named)} of its {count} frames")
    if any(named):
        found = [index for index, one in enumerate(named) if one & uids]
        if not found:
            check_refers(set().union(*named), uids)
        return found
    of_file = set(instances(items_of(annotation, "SourceImageSequence")))
    of_file |= {
        uid
        for series in items_of(annotation, "ReferencedSeriesSequence")
        for uid in instances(items_of(series, "ReferencedInstanceSequence"))
    }
    check_refers(of_file, uids)
    if len(of_file - uids) and of_file:
        raise Skipped("unreadable_annotation", "the segmentation is of several images and does not say which frame is of which")
    return list(range(count))


def _sources(group: Dataset) -> Iterator[str]:
    for derivation in items_of(group, "DerivationImageSequence"):
        yield from instances(items_of(derivation, "SourceImageSequence"))


def _segments_of_frames(annotation: Dataset, ours: Sequence[int]) -> dict[int, list[int]]:
    """Frames of each segment.

    Raises:
      Skipped: If the file has several frames or segments and does not say which is which.
    """
    shared = _segment_number(first_item(annotation, "SharedFunctionalGroupsSequence"))
    per_frame = items_of(annotation, "PerFrameFunctionalGroupsSequence")
    described = [text_of(one, "SegmentNumber") for one in items_of(annotation, "SegmentSequence")]
    frames: dict[int, list[int]] = defaultdict(list)
    for index in ours:
        number = (_segment_number(per_frame[index]) if index < len(per_frame) else None) or shared
        if number is None:
            if len(described) > 1 or len(ours) > 1:
                raise Skipped("several_frames", "the segmentation has several frames and does not say of which segment each is")
            number = int(described[0]) if described and described[0].isdecimal() else 1
        frames[number].append(index)
    return frames


def _segment_number(group: Dataset) -> int | None:
    said = text_of(first_item(group, "SegmentIdentificationSequence"), "ReferencedSegmentNumber")
    return int(said) if said.isdecimal() else None


def _described(annotation: Dataset, frames: dict[int, list[int]]) -> list[_Segment]:
    """Segments with their frames and what the file calls them."""
    about = {text_of(one, "SegmentNumber"): one for one in items_of(annotation, "SegmentSequence")}
    found = []
    for number, places in sorted(frames.items()):
        one = about.get(str(number), Dataset())
        labels = tuple(text for name in ("SegmentLabel", "TrackingID", "TrackingUID") if (text := text_of(one, name)))
        code = text_of(first_item(one, "SegmentedPropertyTypeCodeSequence"), "CodeValue")
        found.append(_Segment(number=number, labels=labels, frames=tuple(places), anatomy=code in ANATOMY))
    return found


def _labelled(annotation: Dataset, frames: Frames, ours: Sequence[int]) -> tuple[list[_Segment], Callable[[_Segment], Mask]]:
    """A map of labels (PS3.3, C.8.20.2): a pixel holds the number of its segment; 0 and the padding value are none."""
    if len(ours) != 1:
        raise Skipped("several_frames", f"{len(ours)} frames of the map of labels are of this mammogram")
    pixels = frames[ours[0]]
    background = {0, number_of(annotation, "PixelPaddingValue", otherwise=0)}
    counts = np.bincount(pixels.ravel()) if pixels.dtype.kind == "u" and pixels.dtype.itemsize < 4 else None
    present = [] if counts is None else [int(one) for one in np.flatnonzero(counts) if int(one) not in background]
    if counts is None:
        raise Skipped("unsupported_encoding", "a map of labels has unsigned pixels of 8 or 16 bits")
    segments = _described(annotation, {number: [ours[0]] for number in present})

    def mask(one: _Segment) -> Mask:
        return np.asarray(pixels == one.number)

    return segments, mask
