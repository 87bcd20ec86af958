"""Ingestion against a bare loop that only decodes: the same phantom mammograms, side by side, and the memory that each takes.

    python benchmarks/bench_ingest.py [--images 200] [--rows 3328] [--columns 2560] [--jobs 2]

The archive holds as many mammograms in each of four encodings. The bare loop is `pydicom.dcmread(path).pixel_array` over its
files, in as many processes as the ingestion uses; the goal is a ratio of 0.8 or more. All that an ingestion does
besides counts: its start, hashes, crops, the journal, the tables and the preflight.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mammo_fed.data.dicom.phantom_archive.tree import PhantomTree, write_phantom_tree
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE

# Files that differ, of each encoding; further ones are further names of these: as much to read, and little to store.
DISTINCT = 12
# CBIS-DDSM as The Cancer Imaging Archive counts it: mammograms, crops and masks.
CBIS_DDSM_IMAGES = 10_239
BARE = """
import sys, warnings
from multiprocessing import get_context
import pydicom
def decode(path):
    warnings.simplefilter("ignore")
    return int(pydicom.dcmread(path).pixel_array[0, 0])
if __name__ == "__main__":
    with get_context("spawn").Pool(int(sys.argv[1])) as pool:
        pool.map(decode, sys.stdin.read().splitlines(), chunksize=1)
"""


def write_archive(root: Path, *, images: int, rows: int, columns: int, encodings: list[str]) -> list[str]:
    """An archive with one table over all encodings; its files, in the table's order."""
    findings: list[dict[str, str]] = []
    for place, encoding in enumerate(encodings):
        cohort = phantom_cohort(
            name="bench",
            num_images=min(DISTINCT, images),
            style=EXTERNAL_STYLE,
            d_prime=2.4,
            image_size=128,
            seed=place,
            split="train",
        )
        tree = PhantomTree(form="csv", encoding=encoding, rows=rows, columns=columns)  # type: ignore[arg-type]
        write_phantom_tree(root / encoding, cohort, tree=tree)
        with (root / encoding / "findings.csv").open(newline="", encoding="utf-8") as file:
            drawn = list(csv.DictReader(file))
        (root / encoding / "findings.csv").unlink()
        for number in range(place, images, len(encodings)):
            row, name = drawn[number % len(drawn)], f"{encoding}/{number}.dcm"
            os.link(root / encoding / row["file"], root / name)
            findings.append({**row, "file": name, "patient": f"{number}", "name": f"{number}"})
    findings.sort(key=lambda row: int(row["name"]))
    with (root / "findings.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(findings[0]))
        table.writeheader()
        table.writerows(findings)
    return [str(root / row["file"]) for row in findings]


def timed(command: list[str], given: str = "") -> tuple[float, float]:
    """Seconds by the clock, and of all processors: the second also tells something on a machine that others use."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # The preflight warns of files with several names.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, check=True, input=given.encode(), env=environment, **quiet)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rows", type=int, default=3328)
    parser.add_argument("--columns", type=int, default=2560)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--encodings", default="explicit,rle,jpeg2000,jpeg_lossless")
    options = parser.parse_args()
    encodings = options.encodings.split(",")
    with tempfile.TemporaryDirectory() as folder:
        root, script = Path(folder) / "archive", Path(folder) / "bare.py"
        paths = write_archive(root, images=options.images, rows=options.rows, columns=options.columns, encodings=encodings)
        script.write_text(BARE)
        seconds: dict[str, list[tuple[float, float]]] = {"ingest": [], "bare": []}
        peaks = {}
        # What is timed first is at no disadvantage: the files are in memory from being written, or are too many for it.
        for repeat in range(options.repeats):
            seconds["bare"].append(timed([sys.executable, str(script), str(options.jobs)], "\n".join(paths)))
            peaks.setdefault("bare", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
            ingest = [sys.executable, "-m", "mammo_fed.cli.main", "data", "ingest", str(root), f"{folder}/cohort-{repeat}"]
            seconds["ingest"].append(timed([*ingest, "--public", "--jobs", str(options.jobs), "--json"]))
    peaks["either"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    rates = {name: options.images / min(clock for clock, _ in values) for name, values in seconds.items()}
    work = {name: min(processors for _, processors in values) for name, values in seconds.items()}
    ratio, minutes = rates["ingest"] / rates["bare"], CBIS_DDSM_IMAGES / rates["ingest"] / 60
    size = (
        f"{options.images} mammograms of {options.rows} x {options.columns} ({', '.join(encodings)}), {options.jobs} processes"
    )
    print(f"{size}: ingest {rates['ingest']:.1f} a second, bare loop {rates['bare']:.1f}, ratio {ratio:.2f}")
    print(f"by the processors' time the ratio is {work['bare'] / work['ingest']:.2f}")
    print(f"largest process: {peaks['either']:.0f} MiB; of the bare loop {peaks['bare']:.0f} MiB")
    print(f"CBIS-DDSM has {CBIS_DDSM_IMAGES:,} images: about {minutes:.0f} minutes at this rate")
    print(json.dumps({"images_per_second": rates, "ingest_over_bare": ratio, "seconds": seconds, "peak_mib": peaks}))


if __name__ == "__main__":
    main()
