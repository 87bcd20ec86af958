"""mammo-fed predict: score images with a run's model."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from mammo_fed.common.command_line import print_json
from mammo_fed.models.predict import predict

__all__ = ["predict_command"]


def predict_command(options: argparse.Namespace, console: Console) -> int:
    """Print the probability of malignancy of each image; the exit code."""
    scores = predict(options.run, options.images)
    if options.json:
        print_json({str(path): score for path, score in scores.items()})
        return 0
    for path, score in scores.items():
        sys.stdout.write(f"{score:.4f}  {path}\n")
    console.print("probability of malignancy; research only, not a medical device", style="dim")
    return 0
