"""A round in clear beside the same round under masks and with shared noise: seconds, bytes, and on request what it is worth.

All sites run in this process, and what carries the messages costs next to nothing: the figures are those of the protocol, each
message going through Flower's serialisation. The three kinds run one after the other in each repetition, so that a drift of the
machine meets all of them; ratios are taken within a repetition. With --utility: AUROC at epsilon 1 per patient (on validation
patients where the data have them, else on the test set) of four sites with their own noise, with shared noise, and of one site.
Usage: python benchmarks/bench_secure.py [--sites 4] [--repetitions 5] [--utility] [--data phantom] [--seeds 1,2,3] [--json]
"""

import argparse
import json
import operator
import statistics
import tempfile
from pathlib import Path
from typing import Any

from mammo_fed.reporting.record.record import Record
from mammo_fed.server.run import Hooks
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import simulate

KINDS = ("none", "masks", "shared_noise")
COMMON = ("data=phantom", "engine.wire=true", "federation.rounds=8")
WORTH = ("privacy.target_epsilon=1", "privacy.unit=patient")


def run(*overrides: str) -> Record:
    """One simulated federation in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return simulate(compose_settings(list(overrides)).settings, Path(folder) / "run", hooks=Hooks())


def round_bytes(record: Record) -> tuple[int, int]:
    """Bytes that travelled, and those that the tasks alone make up: the rest is the public arrays of the declaration."""
    federation, parameters = record.federation, record.model.parameters_trained
    sent_in_clear = 4 * federation.sites * (2 * (parameters - 1) + federation.rounds * (2 * parameters - 1))
    return federation.bytes_up + federation.bytes_down, sent_in_clear


def cost(sites: int, repetitions: int) -> dict[str, Any]:
    """Seconds and bytes of a round of each kind, and their ratios to the round in clear."""
    common = (*COMMON, f"federation.num_sites={sites}")
    records: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    for _ in range(repetitions):
        for kind in KINDS:
            records[kind].append(run(*common, f"federation.secure.use={kind}"))
    declared = records["none"][0].federation.bytes_down - round_bytes(records["none"][0])[1]
    rounds = records["none"][0].federation.rounds + 1
    seconds = {kind: [record.federation.seconds_per_round for record in records[kind]] for kind in KINDS}
    return {
        "parameters": records["none"][0].model.parameters_trained,
        "cost": {
            kind: {
                "ms": 1000 * statistics.median(seconds[kind]),
                "kilobytes": (round_bytes(records[kind][0])[0] - declared) / rounds / 1000,
                "time_ratio": statistics.median(map(operator.truediv, seconds[kind], seconds["none"])),
            }
            for kind in KINDS
        },
    }


def worth(data: str, seeds: list[int]) -> dict[str, list[float]]:
    """AUROC by kind, one value for each seed."""
    found: dict[str, list[float]] = {}
    for name, overrides in (
        ("4 sites, each its own noise", ("federation.num_sites=4",)),
        ("4 sites, shared noise", ("federation.num_sites=4", "federation.secure.use=shared_noise")),
        ("one site with everybody", ("federation.num_sites=1",)),
    ):
        for seed in seeds:
            evaluation = run(f"data={data}", *WORTH, f"seed={seed}", *overrides).evaluation
            found.setdefault(name, []).append(evaluation["val" if "val" in evaluation else "test"].auroc or 0.0)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--utility", action="store_true")
    parser.add_argument("--data", default="phantom")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures: dict[str, Any] = {"sites": given.sites, **cost(given.sites, given.repetitions)}
    if given.utility:
        figures["auroc"] = worth(given.data, [int(seed) for seed in given.seeds.split(",")])
    if given.json:
        print(json.dumps(figures))
        return
    clear = figures["cost"]["none"]["kilobytes"]
    print(f"one round, {given.sites} sites, a head of {figures['parameters']} numbers")
    for kind, each in figures["cost"].items():
        print(
            f"  {kind:13} {each['ms']:8.1f} ms ({each['time_ratio']:5.1f} x)"
            f" {each['kilobytes']:10.1f} kB ({each['kilobytes'] / clear:5.1f} x)"
        )
    for name, values in figures.get("auroc", {}).items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"  {name:30} AUROC {statistics.mean(values):.3f} +- {spread:.3f}  {[round(value, 3) for value in values]}")


if __name__ == "__main__":
    main()
