"""Ingestion against a bare loop that only decodes: the same phantom mammograms, side by side, and the memory that each takes.

    python benchmarks/bench_ingest.py [--images 200] [--rows 4000] [--columns 3000] [--jobs 2]

The bare loop is `pydicom.dcmread(path).pixel_array` over the files, in one process and in as many as the ingestion uses.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mammo_fed.data.dicom.phantom_tree import PhantomTree, write_phantom_tree
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE

DISTINCT = 12
BARE = """
import sys, warnings
from multiprocessing import get_context
import pydicom
def decode(path):
    warnings.simplefilter("ignore")
    return int(pydicom.dcmread(path).pixel_array[0, 0])
if __name__ == "__main__":
    jobs, paths = int(sys.argv[1]), sys.argv[2:]
    if jobs == 1:
        for path in paths:
            decode(path)
    else:
        with get_context("spawn").Pool(jobs) as pool:
            pool.map(decode, paths, chunksize=1)
"""


def repeat_files(root: Path, images: int) -> None:
    """Give each file further names, until there are so many: as much to read, and little to store."""
    header, *rows = (root / "findings.csv").read_text().splitlines()
    with (root / "findings.csv").open("w") as table:
        table.write(header + "\n")
        for number in range(images):
            name, _, rest = rows[number % DISTINCT].partition(",")
            link = root / f"images/link-{number}.dcm"
            os.link(root / name, link)
            table.write(f"images/{link.name},{rest}\n")
    for name in {row.partition(",")[0] for row in rows}:
        (root / name).unlink()


def timed(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--columns", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--encodings", default="explicit,rle,jpeg2000,jpeg_lossless")
    options = parser.parse_args()
    cohort = phantom_cohort(
        name="bench", num_images=DISTINCT, style=EXTERNAL_STYLE, d_prime=2.4, image_size=128, seed=0, split="train"
    )
    found = {}
    for encoding in options.encodings.split(","):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "archive"
            tree = PhantomTree(form="csv", encoding=encoding, rows=options.rows, columns=options.columns)  # type: ignore[arg-type]
            write_phantom_tree(root, cohort, tree=tree)
            repeat_files(root, options.images)
            script = Path(folder) / "bare.py"
            script.write_text(BARE)
            paths = sorted(str(path) for path in root.rglob("*.dcm"))
            seconds: dict[str, list[float]] = {"ingest": [], "bare, 1 process": [], f"bare, {options.jobs} processes": []}
            for repeat in range(options.repeats):
                ingest = [sys.executable, "-m", "mammo_fed.cli.main", "data", "ingest", str(root), f"{folder}/cohort-{repeat}"]
                seconds["ingest"].append(timed([*ingest, "--public", "--jobs", str(options.jobs), "--json"]))
                seconds["bare, 1 process"].append(timed([sys.executable, str(script), "1", *paths]))
                seconds[f"bare, {options.jobs} processes"].append(
                    timed([sys.executable, str(script), str(options.jobs), *paths])
                )
            best = {name: float(np.min(values)) for name, values in seconds.items()}
            rates = {name: options.images / value for name, value in best.items()}
            ratios = {name: rates["ingest"] / rate for name, rate in rates.items() if name != "ingest"}
            found[encoding] = {"images_per_second": rates, "ingest_over": ratios}
            shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
            print(f"{encoding}: images a second: {shown}; ratio " + ", ".join(f"{value:.2f}" for value in ratios.values()))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"largest process: {peak:.0f} MiB")
    print(json.dumps({"mammogram": [options.rows, options.columns], "encodings": found, "peak_mib": peak}))


if __name__ == "__main__":
    main()
