"""Damaged files by the thousand: each gives a patch or a reason, and none a crash, a hang or a flood of memory."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mammo_fed.data.dicom.findings import REASONS, Breast, Finding, Skipped
from mammo_fed.data.dicom.geometry import CropRule
from mammo_fed.data.dicom.image.intensity import Windowing, intensity_of
from mammo_fed.data.dicom.image.reading import read_mammogram
from mammo_fed.data.dicom.ingest import MEMORY_BYTES, Ingested, IngestPlan, ingest
from mammo_fed.data.dicom.patch import PatchRecipe
from mammo_fed.data.pseudonyms import Pseudonyms
from tests.data.dicom.making import gradient, mammogram, write
from tests.data.dicom.mutations import bomb, bundled_files, mutate

FILES = int(os.environ.get("MAMMO_FED_FUZZ", "400"))
AT_ONCE = 2000
# What Python and the decoders need besides the data.
PROGRAM_BYTES = 512 << 20


def ingest_files(folder: Path, out: Path, *, processes: int = 2) -> Ingested:
    findings = [
        Finding(image=path, lesion=Breast(), patient=path.name, name=path.name, label=1, split="train")
        for path in sorted(folder.iterdir())
    ]
    recipe = PatchRecipe(crop=CropRule(size=32), windowing="window", modality=None)
    plan = IngestPlan(source="csv", recipe=recipe, public=True, processes=processes)
    return ingest(findings, out, plan=plan, pseudonyms=Pseudonyms.kept_at(out.with_name(f"{out.name}.salt")))


def in_a_fresh_process(folder: Path, out: Path) -> tuple[Ingested, int]:
    """What came of an ingestion, and the largest memory in bytes of any process that took part in it."""
    code = (
        "import json, sys; from dataclasses import asdict; from pathlib import Path; "
        "from tests.data.dicom.test_fuzz import ingest_files, largest_memory; "
        "done = asdict(ingest_files(*map(Path, sys.argv[1:]))); "
        "sys.stdout.write(json.dumps([done, largest_memory()]))"
    )
    # By name: a command that ran in this process keeps its children from importing what lies in their current folder.
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(out)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        check=True,
    )
    ingested, peak = json.loads(done.stdout)
    return Ingested(**ingested), peak


def largest_memory() -> int:
    """The largest resident memory in bytes that this process, or any process that it has waited for, ever had."""
    # What getrusage says of this process would count what its parent, a test run of any size, held when it started it.
    (own,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def grey_images() -> list[bytes]:
    """Files that give a patch as long as nobody damages them."""
    found = []
    for path in bundled_files():
        with contextlib.suppress(Skipped):
            read_mammogram(path, modality=None)
            found.append(path.read_bytes())
    return found


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_fuzz_damaged_files_give_patches_or_reasons_that_add_up(tmp_path):
    rng = random.Random(5)  # noqa: S311 - which byte is flipped is no secret
    images, others = grey_images(), [path.read_bytes() for path in bundled_files() if path.stat().st_size]
    counts: dict[str, int] = {}
    for start in range(0, FILES, AT_ONCE):
        folder = tmp_path / f"files-{start}"
        folder.mkdir()
        number = min(AT_ONCE, FILES - start)
        for place in range(number):
            (folder / f"{place}.dcm").write_bytes(mutate(rng.choice(images if rng.random() < 0.9 else others), rng))
        done, peak = in_a_fresh_process(folder, tmp_path / f"cohort-{start}")
        assert done.images + sum(done.refused.values()) == done.findings == number
        assert peak < MEMORY_BYTES + PROGRAM_BYTES
        for reason, count in {"patches": done.images, **done.refused}.items():
            counts[reason] = counts.get(reason, 0) + count
        for path in folder.iterdir():
            path.unlink()
    sys.stdout.write(f"\n{FILES} damaged files: {counts}\n")
    assert set(counts) - {"patches"} <= set(REASONS)
    assert sum(counts.values()) == FILES
    assert counts.get("timed_out", 0) == 0


def test_fuzz_file_that_inflates_without_end_is_too_large(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "bomb.dcm").write_bytes(bomb(b"", random.Random(0)))  # noqa: S311
    assert (tmp_path / "files" / "bomb.dcm").stat().st_size < 1 << 20
    assert ingest_files(tmp_path / "files", tmp_path / "cohort", processes=1).refused == {"too_large": 1}


def test_all_of_pydicoms_own_files_are_taken_or_refused_with_a_reason(tmp_path):
    (tmp_path / "files").mkdir()
    for number, path in enumerate(bundled_files()):
        (tmp_path / "files" / f"{number}.dcm").write_bytes(path.read_bytes())
    done = ingest_files(tmp_path / "files", tmp_path / "cohort")
    assert done.findings == len(bundled_files()) > 100
    assert done.images > 30
    assert done.images + sum(done.refused.values()) == done.findings
    assert set(done.refused) <= set(REASONS)
    assert not {"decoder_crashed", "timed_out"} & set(done.refused)


words = st.text(st.characters(codec="ascii"), max_size=12)
numbers = st.one_of(st.integers(0, 65535), st.sampled_from([0, 1, 2, 8, 12, 16, 32, 64, 96]))
headers = st.fixed_dictionaries(
    {},
    optional={
        "Rows": numbers,
        "Columns": numbers,
        "BitsAllocated": numbers,
        "BitsStored": numbers,
        "PixelRepresentation": numbers,
        "SamplesPerPixel": numbers,
        "PixelPaddingValue": numbers,
        "NumberOfFrames": st.integers(-3, 3),
        "PhotometricInterpretation": st.one_of(words, st.sampled_from(["MONOCHROME1", "MONOCHROME2"])),
        "VOILUTFunction": st.one_of(words, st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"])),
        "WindowCenter": st.floats(-1e9, 1e9),
        "WindowWidth": st.floats(-1e9, 1e9),
        "RescaleSlope": st.floats(-1e9, 1e9),
        "RescaleIntercept": st.floats(-1e9, 1e9),
        "ImagerPixelSpacing": st.lists(st.floats(-10, 1e3), max_size=3),
        "ViewPosition": words,
    },
)


@settings(max_examples=300, deadline=None)
@given(headers, st.sampled_from(["minmax", "window", "stored"]), st.integers(0, 3))
def test_fuzz_any_header_gives_intensities_or_a_reason(tmp_path_factory, changes, windowing, lost):
    pixels = gradient(16, 12)
    # pydicom itself refuses to write some of it: then there is no such file.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = mammogram(pixels, **changes)
            header.PixelData = header.PixelData[: len(header.PixelData) - 2 * lost]
            path = write(header, tmp_path_factory.mktemp("one") / "a.dcm")
        except (ValueError, TypeError, OverflowError, OSError, KeyError, AttributeError):
            assume(False)
    shown = shown_or_reason(path, windowing)
    if isinstance(shown, str):
        assert shown in REASONS
    else:
        assert (shown.ndim, shown.dtype) == (2, np.float32)
        assert 0 <= shown.min() <= shown.max() <= 1


def shown_or_reason(path: Path, windowing: Windowing) -> np.ndarray | str:
    try:
        read = read_mammogram(path)
        return intensity_of(read.header, read.stored, windowing=windowing)(read.stored)
    except Skipped as refused:
        return refused.reason
