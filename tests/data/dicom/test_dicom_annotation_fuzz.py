"""Damaged annotations: each gives a region or a reason, and none another exception or a flood of memory."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from mammo_fed.common.worker_pool import run_isolated
from mammo_fed.data.dicom.annotations.marking import is_annotation, marked_region
from mammo_fed.data.dicom.findings import REASONS, Box, Outline, Skipped
from mammo_fed.data.dicom.image.headers import dataset
from tests.data.dicom.annotating import DRAWN, MASS, SHAPE, described, drawn_mask, item, segmentation, sloppy_segmentation
from tests.data.dicom.mutations import flip_bytes, lie_about_a_length, repeat_a_part, swap_tags, truncate
from tests.data.dicom.test_dicom_presentations import area, graphic, group, presentation
from tests.data.dicom.test_dicom_reports import (
    HERE,
    IMAGE,
    SQUARE,
    detection,
    finding,
    measured,
    outlined,
    picture,
    placed,
    report,
)
from tests.data.dicom.test_dicom_structures import contour, structures

FILES = 400
# Of a process with all its libraries; damaged files name images far larger than that.
MOST_BYTES = 512 << 20
# Places among the annotations of those whose frames are codestreams.
COMPRESSED = (1, 2)


def annotations() -> list[Dataset]:
    labels = drawn_mask((5, 6, 15, 20)) + 2 * drawn_mask()
    two = [described(1, "node"), described(2, "mass")]
    at = picture(IMAGE, "SELECTED FROM")
    return [
        sloppy_segmentation(drawn_mask()),
        segmentation([IMAGE], drawn_mask()[None], [described(1, "mass")], transfer_syntax_uid=JPEG2000Lossless),
        segmentation([IMAGE], labels[None], two, "LABELMAP", transfer_syntax_uid=RLELossless),
        segmentation([IMAGE], 0.9 * drawn_mask()[None], [described(1, "mass")], "FRACTIONAL"),
        structures((1, "mass", [contour(DRAWN), contour((60, 12, 70, 44))])),
        presentation(
            group(graphic(data=[one / 100 for one in SQUARE], units="DISPLAY")), DisplayedAreaSelectionSequence=area()
        ),
        presentation(group(graphic("INTERPOLATED"), TextObjectSequence=[item(UnformattedTextValue="mass")])),
        detection(finding(MASS, outlined("ELLIPSE", [28, 30, 28, 58, 12, 44, 44, 44], HERE))),
        report(measured(placed("111030", "POLYLINE", SQUARE, at, "CONTAINS"), name="mass", what=MASS)),
    ]


def outcome(task: tuple[Path, str]) -> str:
    path, region = task
    try:
        header = dataset(path)
        if not is_annotation(header):
            return "no annotation"
        found = marked_region(header, image=IMAGE, shape=SHAPE, region=region)
    except Skipped as skipped:
        return skipped.reason
    if isinstance(found, np.ndarray):
        return "region" if (found.shape, found.dtype) == (SHAPE, np.bool_) else "another size"
    return "region" if isinstance(found, Box) or (isinstance(found, Outline) and found.points.ndim == 2) else "no region"


@pytest.mark.timeout(120)
def test_fuzz_damaged_dicom_annotations_give_a_region_or_a_reason_in_bounded_memory(tmp_path):
    rng = random.Random(11)  # noqa: S311 - which byte is flipped is no secret
    contents = []
    for made in annotations():
        file = io.BytesIO()
        made.save_as(file, enforce_file_format=True)
        contents.append(file.getvalue())
    tasks = []
    for number in range(FILES):
        kind = rng.randrange(len(contents))
        content = contents[kind]
        for _ in range(rng.choice((1, 1, 3))):
            content = rng.choice((flip_bytes, flip_bytes, truncate, repeat_a_part, lie_about_a_length, swap_tags))(content, rng)
        path = tmp_path / ("encoded" if kind in COMPRESSED else "plain") / f"{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        tasks.append((path, rng.choice(("", "", "1", "mass"))))
    counts = Counter[str]()
    # An exception would end the process, and a flood of memory would be a reason of its own.
    for (path, _), answer in run_isolated(outcome, tasks, processes=2, seconds=20.0, memory_bytes=MOST_BYTES):
        # A decoder that a damaged codestream brings down takes nobody along.
        word = answer if isinstance(answer, str) else f"{answer.how} {path.parent.name}"
        counts[word] += 1
    assert sum(counts.values()) == FILES
    assert set(counts) <= {"region", "no annotation", "crashed encoded", *REASONS}
    assert counts["crashed encoded"] < FILES // 50
    assert counts["region"] > FILES // 10
    assert len(counts) > 5
