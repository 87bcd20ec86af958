"""An archive in four encodings whose ingestion is killed at ten random moments ends as one that nobody disturbed."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mammo_fed.data.dicom.ingest import MEMORY_BYTES
from mammo_fed.data.dicom.phantom_archive.tree import PhantomTree, write_phantom_tree
from mammo_fed.data.dicom.phantom_archive.writing import Encoding
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE

# MAMMO_FED_ARCHIVE=2000 makes as many mammograms of full size.
IMAGES = int(os.environ.get("MAMMO_FED_ARCHIVE", "0"))
FULL_SIZE = (3328, 2560)
SMALL_SIZE = (512, 384)
ENCODINGS: tuple[Encoding, ...] = ("explicit", "rle", "jpeg2000", "jpeg_lossless")
# Files that differ, of each encoding; further ones are further names of these, which take as long to read.
DISTINCT = 12
KILLS = 10
# What Python and the decoders need besides the data.
PROGRAM_BYTES = 512 << 20


def mixed_archive(root: Path, *, images: int, size: tuple[int, int]) -> Path:
    """One table over mammograms in every encoding."""
    rows: list[dict[str, str]] = []
    for place, encoding in enumerate(ENCODINGS):
        count = images // len(ENCODINGS)
        cohort = phantom_cohort(
            name=encoding,
            num_images=min(count, DISTINCT),
            style=EXTERNAL_STYLE,
            d_prime=2.4,
            image_size=128,
            seed=place,
            split="train",
        )
        tree = PhantomTree(form="csv", encoding=encoding, rows=size[0], columns=size[1])
        write_phantom_tree(root / encoding, cohort, tree=tree)
        with (root / encoding / "findings.csv").open(newline="", encoding="utf-8") as file:
            drawn = list(csv.DictReader(file))
        for number in range(count):
            row, name = drawn[number % len(drawn)], f"{encoding}/{number}.dcm"
            os.link(root / encoding / row["file"], root / name)
            patient, finding = f"{encoding} {row['patient']} {number // len(drawn)}", f"{encoding} {number}"
            rows.append({**row, "file": name, "patient": patient, "name": finding})
        (root / encoding / "findings.csv").unlink()
    with (root / "findings.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return root


def begun(archive: Path, cohort: Path) -> subprocess.Popen[bytes]:
    """An ingestion in a process group of its own."""
    command = [sys.executable, "-m", "mammo_fed.cli.main", "data", "ingest", str(archive), str(cohort), "--json", "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(
        [*command, "--salt", str(archive.parent / "salt"), "--public"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end that nobody brings about."""
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()[-500:]


def kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def made(cohort: Path) -> int:
    """How many patches the journal speaks of."""
    journal = cohort / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def contents(cohort: Path) -> dict[str, bytes]:
    """All that a site reads of a cohort; the journal tells of the way there."""
    left_out = ("journal.jsonl", ".lock", "preflight.json", "preflight.html")
    files = (path for path in cohort.rglob("*") if path.is_file() and path.name not in left_out)
    return {str(path.relative_to(cohort)): path.read_bytes() for path in files}


def largest_memory(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """The largest resident memory in bytes of any process of the group, looked at until it ends."""
    while process.poll() is None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(folder.name)) == process.pid:
                    held = re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
                    yield 1024 * int(held[1]) if held else 0
            except (OSError, ValueError):
                # It has ended.
                continue
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_dicom_ingestion_that_was_killed_ten_times_gives_the_same_cohort(tmp_path):
    images, size = (IMAGES, FULL_SIZE) if IMAGES else (40, SMALL_SIZE)
    archive = mixed_archive(tmp_path / "archive", images=images, size=size)
    start, undisturbed = time.monotonic(), begun(archive, tmp_path / "undisturbed")
    peak = max(largest_memory(undisturbed))
    ended(undisturbed)
    seconds = time.monotonic() - start
    assert peak < MEMORY_BYTES + PROGRAM_BYTES
    rng, cohort, lost = random.Random(11), tmp_path / "killed", 0  # noqa: S311 - when it is killed is no secret
    for number in range(KILLS):
        process, before = begun(archive, cohort), made(cohort)
        # At any moment of a tenth of a whole run, its start included; or as soon as so many patches more were made. All kills
        # together come before the end.
        latest = time.monotonic() + (seconds if number % 2 else rng.uniform(0, seconds / KILLS))
        more = before + rng.randrange(1, 1 + max(1, images // KILLS)) if number % 2 else images + 1
        while process.poll() is None and time.monotonic() < latest and made(cohort) < more:
            time.sleep(0.002)
        lost += process.poll() is None
        kill_group(process) if process.poll() is None else ended(process)
    assert lost > KILLS // 2
    ended(begun(archive, cohort))
    assert json.loads((cohort / "cohort.json").read_text())["images"] == images
    assert contents(cohort) == contents(tmp_path / "undisturbed")
    sys.stdout.write(f"\n{images} mammograms of {size[0]} x {size[1]}: {seconds:.0f} s, {peak >> 20} MiB, {lost} kills\n")
