"""Start-up time: the processor time of commands that compute little, next to that of importing what they are made with.

Each command and the reference (rich, Hydra and OmegaConf, with which every command line here is made) run in turn, several
times over, so that a busy moment of the machine meets all of them; the least of each is compared.

    python benchmarks/bench_startup.py [REPEATS]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

REFERENCE = "import rich, hydra, omegaconf"
LIMIT = 3.0
MAMMO_FED, FLOWER_SERVER, SITE_CLIENT = (
    "mammo_fed.cli.main",
    "mammo_fed.server.operations.cli",
    "mammo_fed.client.operations.cli",
)


def cpu_seconds(command: list[str], folder: Path, *, codes: tuple[int, ...] = (0,)) -> float:
    """User and system time of one process."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in codes, f"{command} ended with {process.returncode}"
    return used.ru_utime + used.ru_stime


def program(module: str, *arguments: str) -> list[str]:
    """What the installed command of a module does."""
    return [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *arguments]


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = ("init", "federation", "--name", "bench", "--host", "localhost")
        subprocess.run(program(FLOWER_SERVER, *make), cwd=folder, check=True, stderr=subprocess.DEVNULL)
        ca = "federation/for-sites/ca.crt"
        make = ("init", "site", "--name", "site", "--server", "localhost:8443", "--ca", ca, "data=phantom")
        small = ("data.images_train=96", "data.images_test=48", "data.images_external=24", "data.image_size=64")
        subprocess.run(program(SITE_CLIENT, *make, *small), cwd=folder, check=True, stderr=subprocess.DEVNULL)
        commands = {
            "mammo-fed --help": program(MAMMO_FED, "--help"),
            "mammo-fed privacy plan --help": program(MAMMO_FED, "privacy", "plan", "--help"),
            "mammo-fed simulate --cfg job": program(MAMMO_FED, "simulate", "--cfg", "job"),
            "flower-server --help": program(FLOWER_SERVER, "--help"),
            "flower-server status": program(FLOWER_SERVER, "status", "federation"),
            "site-client --help": program(SITE_CLIENT, "--help"),
            "site-client status": program(SITE_CLIENT, "status", "site"),
            "mammo-fed privacy plan (computes)": program(MAMMO_FED, "privacy", "plan"),
        }
        least = dict.fromkeys(commands, float("inf"))
        reference = float("inf")
        for _ in range(repeats):
            reference = min(reference, cpu_seconds([sys.executable, "-c", REFERENCE], folder))
            for title, command in commands.items():
                # The status of a site that is stopped is 1.
                least[title] = min(least[title], cpu_seconds(command, folder, codes=(0, 1)))
    print(f"{'CPU seconds, least of ' + str(repeats):<44}{'seconds':>8}{'ratio':>8}")
    print(f"{'python -c ' + repr(REFERENCE):<44}{reference:8.3f}{1:8.2f}")
    for title, seconds in least.items():
        ratio = seconds / reference
        beyond = "" if ratio <= LIMIT or "computes" in title else f"  above {LIMIT:g}"
        print(f"{title:<44}{seconds:8.3f}{ratio:8.2f}{beyond}")


if __name__ == "__main__":
    main()
