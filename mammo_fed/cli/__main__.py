"""`python -m mammo_fed.cli` is `mammo-fed`."""

from __future__ import annotations

import logging
import sys

from mammo_fed.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
