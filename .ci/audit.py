"""Known vulnerabilities of what is installed, by pip-audit; those that audit-ignore.txt lists with a reason are let pass.

Where the vulnerability service cannot be reached, nothing has been audited: that is said, and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IGNORED = Path(__file__).with_name("audit-ignore.txt")


def read_ignored(text: str) -> dict[str, str]:
    """Reason by identifier: a line is "IDENTIFIER reason", # begins a comment.

    Raises:
      ValueError: If a line gives no reason.
    """
    found = {}
    for line in text.splitlines():
        identifier, _, reason = line.partition("#")[0].strip().partition(" ")
        if identifier and not reason.strip():
            raise ValueError(f"{IGNORED.name}: {identifier} must have a reason behind it")
        if identifier:
            found[identifier] = reason.strip()
    return found


def judge(dependencies: Sequence[Mapping[str, Any]], ignored: Mapping[str, str]) -> tuple[list[str], list[str], int]:
    """What is vulnerable, what is vulnerable and let pass, and how many distributions were looked up."""
    bad, passed = [], []
    looked_up = [found for found in dependencies if "skip_reason" not in found]
    for found in looked_up:
        for fault in found["vulns"]:
            names = {fault["id"], *fault.get("aliases", ())}
            line = f"{found['name']} {found['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'none'}"
            reason = next((ignored[name] for name in sorted(names) if name in ignored), None)
            if reason is None:
                bad.append(line)
            else:
                passed.append(f"{line} (let pass: {reason})")
    return bad, passed, len(looked_up)


def main() -> int:
    """Audit this Python's environment: 1 if something is vulnerable."""
    ignored = read_ignored(IGNORED.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable", "--local"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        sys.stdout.write(f"pip-audit: the vulnerability service could not be reached, nothing was audited ({reason})\n")
        return 0
    bad, passed, looked_up = judge(dependencies, ignored)
    sys.stdout.write("".join(f"pip-audit: {line}\n" for line in (*passed, *bad)))
    if looked_up == 0:
        sys.stdout.write("pip-audit: the vulnerability service could not be reached, nothing was audited\n")
    else:
        sys.stdout.write(f"pip-audit: {looked_up} of {len(dependencies)} distributions were looked up, {len(bad)} faults\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
