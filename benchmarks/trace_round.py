"""Which of our functions one plain training round runs: what a reader must know to follow a round from task to model.

A small federation of two sites runs in this process; counted are the functions that are entered between the end of round 1 and
the end of round 2, at the server and at the sites. Comprehensions and lambdas count as part of the function around them.
Usage: python benchmarks/trace_round.py [--json] [SETTING=VALUE ...]
"""

import argparse
import json
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import mammo_fed
from mammo_fed.server.run import Hooks
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import simulate

SMALL = (
    "model=efficientnet_lite0",
    "model.input_size=64",
    "model.flips=none",
    "model.components=20",
    "data.image_size=64",
    "data.images_train=96",
    "data.images_test=48",
    "data.images_external=24",
    "synthesis.count=48",
    "federation.rounds=3",
    "federation.num_sites=2",
    "privacy.noise_seed=5",
)
TRACED_ROUND = 2
PACKAGE = Path(mammo_fed.__file__).parent


class RoundTrace:
    """Notes which functions of the package are entered, in every thread, while one round lasts."""

    def __init__(self) -> None:
        self._found: defaultdict[str, set[str]] = defaultdict(set)
        self._recording = False

    @property
    def functions(self) -> Mapping[str, list[str]]:
        """Names of the functions by file, both sorted; files are named from the package on."""
        return {file: sorted(names) for file, names in sorted(self._found.items())}

    def run(self, *overrides: str) -> None:
        """Run the small federation with these settings and trace its second training round."""
        settings = compose_settings([*SMALL, *overrides]).settings
        with tempfile.TemporaryDirectory() as folder:
            # Threads that are started from here on are traced from their first call.
            threading.setprofile(self._event)
            sys.setprofile(self._event)
            try:
                hooks = Hooks(round=lambda index, *_: self._round(index))
                simulate(settings, Path(folder) / "run", hooks=hooks)
            finally:
                sys.setprofile(None)
                threading.setprofile(None)

    def _round(self, index: int) -> None:
        self._recording = index == TRACED_ROUND - 1

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if not self._recording or event != "call":
            return
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            name, *_ = frame.f_code.co_qualname.partition(".<locals>.<")
            self._found[str(path.relative_to(PACKAGE))].add(name)


def main() -> None:
    """Trace a round and print what ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE")
    parser.add_argument("--json", action="store_true", help="print the functions by file as JSON")
    arguments = parser.parse_args()
    trace = RoundTrace()
    trace.run(*arguments.settings)
    functions = trace.functions
    if arguments.json:
        print(json.dumps(functions, indent=2))
        return
    for file, names in functions.items():
        print(f"{file}: {', '.join(names)}")
    print(f"{sum(map(len, functions.values()))} functions in {len(functions)} files")


if __name__ == "__main__":
    main()
