"""A folder whose files are named like modules that our processes import; each leaves a mark when it is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULES = (
    # Of this project, now and before it was one package.
    "client",
    "server",
    "simulations",
    "mammo_fed",
    # Of what it stands on.
    "flwr",
    "numpy",
    "torch",
    "ray",
    "hydra_plugins/trap",
    # Imported by Python before any code of a program runs, and by the processes that it starts for itself.
    "sitecustomize",
    "usercustomize",
    "multiprocessing",
    "selectors",
)
TRAP = 'import sys\nwith open({marks!r}, "a") as marks:\n    marks.write(f"{{__file__}} {{sys.argv}}\\n")\n'
PYPROJECT = """[project]
name = "trap"
version = "0.0.1"

[tool.flwr.app]
publisher = "trap"

[tool.flwr.app.components]
serverapp = "server:app"
clientapp = "client:app"
"""


@dataclass(frozen=True)
class HostileFolder:
    """The folder, and the file that every trap in it writes to."""

    path: Path
    marks: Path

    @property
    def executed(self) -> str:
        """What was executed of it, a line each."""
        return self.marks.read_text() if self.marks.exists() else ""

    def run(self, command: str, *arguments: object, **named: Any) -> subprocess.CompletedProcess[str]:
        """An installed command that is started in this folder."""
        program = str(Path(sys.executable).parent / command)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **named.pop("env", {})}
        # The tests' own process may have had its commands set this already.
        environment.pop("PYTHONSAFEPATH", None)
        return subprocess.run(
            [program, *map(str, arguments)],
            cwd=self.path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            **named,
        )


def hostile_folder(root: Path) -> HostileFolder:
    """Make the folder below `root`."""
    made = HostileFolder(root / "here", root / "marks")
    trap = TRAP.format(marks=str(made.marks))
    made.path.mkdir(parents=True)
    (made.path / "hydra_plugins").mkdir()
    for name in MODULES:
        (made.path / f"{name}.py").write_text(trap)
    (made.path / "configs").mkdir()
    (made.path / "configs" / "__init__.py").write_text(trap)
    (made.path / "configs" / "config.yaml").write_text("seed: 4711\n")
    (made.path / "config.yaml").write_text("seed: 4711\n")
    (made.path / "pyproject.toml").write_text(PYPROJECT)
    (made.path / ".env").write_text("OMP_NUM_THREADS=nonsense\n")
    # A report that follows it would need LaTeX, and be red.
    (made.path / "matplotlibrc").write_text("text.usetex: True\nfigure.facecolor: red\n")
    return made
