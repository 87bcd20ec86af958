"""A second environment that differs from this Python's in Flower's version alone: `other_flower.py FOLDER [VERSION]`.

VERSION is the oldest supported one unless given. Everything else, the package included, is this environment's: the new one
holds Flower, the package's commands and a line that says where the rest lies. Where the package index cannot be reached, that
is said, nothing is left behind, and the tests that need the other version skip.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = "1.41.0"


def main() -> int:
    """Make the environment anew; 0 also where it cannot be had."""
    folder = Path(sys.argv[1]).absolute()
    version = sys.argv[2] if len(sys.argv) > 2 else OLDEST
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    libraries = next((folder / "lib").glob("python*/site-packages"))
    # Later on the path than what is installed into the folder itself.
    (libraries / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    for what in ([f"flwr=={version}"], ["--no-build-isolation", "--editable", str(ROOT)]):
        done = subprocess.run([*pip, "--ignore-installed", *what], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder)
            sys.stdout.write(
                f"flwr {version} could not be installed, nothing is tested with it ({done.stderr.strip()[-300:]})\n"
            )
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
