"""mammo-fed gan train: the settings of a generator's training."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from mammo_fed.errors import InvalidSetting
from mammo_fed.settings.compose import ComposedGan, compose_gan, read_composed_gan

__all__ = ["train_command"]


def train_command(options: argparse.Namespace, console: Console) -> int:
    """Train a generator, or go on with a training; the exit code."""
    composed = _composed(options)
    if options.cfg:
        sys.stdout.write(composed.yaml)
        return 0
    # Late, for torch takes seconds, and neither --cfg nor a wrong setting should wait for it.
    from mammo_fed.cli.gan.training import train

    train(
        composed,
        resume=options.resume is not None,
        site_folder=options.site,
        tensorboard=options.tensorboard,
        console=console,
        json_only=options.json,
    )
    return 0


def _composed(options: argparse.Namespace) -> ComposedGan:
    if options.resume is None:
        return compose_gan(options.overrides)
    if options.overrides:
        raise InvalidSetting(f"--resume goes on as it was begun: {options.overrides[0]} cannot change that; leave it out")
    return read_composed_gan(options.resume)
