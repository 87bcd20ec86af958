"""A generator's training on the console: its folder, its progress, and what it promises."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mammo_fed.cli.gan.bar import Bar
from mammo_fed.client.generator.training import start_training
from mammo_fed.client.generator.training_folder import Training, new_private_folder, read_training
from mammo_fed.common.command_line import print_json, say, warn
from mammo_fed.common.interruption import advise
from mammo_fed.common.private_files import write_atomically
from mammo_fed.errors import InvalidSetting
from mammo_fed.reporting.formatting import delta_text, epsilon_text
from mammo_fed.settings.checks import delta_warning
from mammo_fed.settings.compose import ComposedGan
from mammo_fed.synthesis.adversarial import Losses
from mammo_fed.synthesis.scalars import TENSORBOARD_ABSENT, has_tensorboard

__all__ = ["train"]


def train(
    composed: ComposedGan,
    *,
    resume: bool,
    site_folder: Path | None,
    tensorboard: bool,
    console: Console,
    json_only: bool,
) -> None:
    """Train in the folder of `composed`, and say what came out.

    Args:
      composed: settings and folder.
      resume: go on with the training that lies there.
      site_folder: of the site whose cohort, policy and ledger are used; None for a public cohort.
      tensorboard: whether its scalars are written too; where it is not installed, one line says so.
      console: shows how it goes on.
      json_only: print the result as JSON and nothing for people.

    Raises:
      InvalidSetting: If a new training would overwrite one.
    """
    folder = composed.folder
    if tensorboard and not has_tensorboard():
        warn(console, TENSORBOARD_ABSENT)
        tensorboard = False
    if not resume:
        _check_fresh(folder)
        new_private_folder(folder)
        write_atomically(folder / "config.yaml", composed.yaml)
    advise(f"interrupted; what was finished is kept: mammo-fed gan train --resume {folder}")
    with Bar(console, "steps", quiet=json_only) as bar:

        def show(step: int, steps: int, losses: Losses | None) -> None:
            held = (
                ""
                if losses is None
                else f"; checkpoint {losses.step}: generator {losses.generator:.3f}, fake {losses.fake:.3f}"
            )
            bar.update(step, steps, f"step {step} of {steps}{held}")

        start_training(composed.settings, folder, site_folder=site_folder, progress=show, tensorboard=tensorboard)
    training = read_training(folder)
    promised = _promise(training, composed)
    if json_only:
        print_json({"folder": str(folder.resolve()), "steps": composed.settings.gan.steps, "privacy": promised})
        return
    privacy, patients = composed.settings.privacy, training.donor.patients
    if training.event is not None and (said := delta_warning(delta=privacy.delta, patients=patients)):
        warn(console, said)
    say(
        console,
        f"privacy:   {promised}",
        f"training:  {folder.resolve()}",
        f"draw a set: mammo-fed gan sample {folder} --output SET",
    )


def _check_fresh(folder: Path) -> None:
    if (folder / "training.json").exists():
        raise InvalidSetting(f"hydra.run.dir={folder} holds a training: go on with --resume {folder}, or choose another folder")


def _promise(training: Training, composed: ComposedGan) -> str:
    privacy = composed.settings.privacy
    if training.event is None:
        return "none: the images may tell of the donor's patients, and no epsilon of a later run covers that"
    if training.injected:
        return "none: the noise was injected and anyone can draw it again"
    reals = ", in exact arithmetic: the noise was drawn in floating point" if privacy.noise == "float" else ""
    return f"(epsilon={epsilon_text(privacy.target_epsilon)}, delta={delta_text(privacy.delta)}) for each {privacy.unit}{reals}"
