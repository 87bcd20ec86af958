"""One value of a site's file changed where a person would change it, with all comments kept; proven by reading it back."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from mammo_fed.common.private_files import write_private
from mammo_fed.errors import InvalidSetting

__all__ = ["set_max_epsilon"]

ASSIGNED: Final = re.compile(r"""max_epsilon["']?[ \t]*=[ \t]*(?P<value>[^\s,#}\]]+)""")


def set_max_epsilon(path: Path, max_epsilon: float) -> None:
    """Set `policy.max_epsilon` in the TOML file `path`, and nothing else.

    Args:
      path: a site's file.
      max_epsilon: above 0; may be infinite.

    Raises:
      InvalidSetting: If no single change of the text has just this effect, or the file cannot be written; says what to write.
    """
    value = "inf" if math.isinf(max_epsilon) else repr(float(max_epsilon))
    try:
        text = path.read_bytes().decode("utf-8")
        wanted = tomllib.loads(text)
        wanted["policy"]["max_epsilon"] = float(max_epsilon)
        for match in ASSIGNED.finditer(text):
            changed = text[: match.start("value")] + value + text[match.end("value") :]
            if _values(changed) == wanted:
                write_private(path, changed)
                return
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _by_hand(path, value) from error
    raise _by_hand(path, value)


def _values(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except ValueError:
        return None


def _by_hand(path: Path, value: str) -> InvalidSetting:
    return InvalidSetting(f"{path} could not be changed; write there, below [policy]: max_epsilon = {value}")
