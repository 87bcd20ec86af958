"""mammo-fed gan: train a generator of synthetic masses, draw a set, judge it, and import one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mammo_fed.cli.gan_evaluate import add_judge_command
from mammo_fed.common.command_line import Command, print_json, say
from mammo_fed.errors import InvalidSetting
from mammo_fed.reporting.record.record import write_atomically
from mammo_fed.reporting.record.statements import delta_text, epsilon_text
from mammo_fed.settings.compose import ComposedGan, compose_gan, read_composed_gan

if TYPE_CHECKING:
    from mammo_fed.data.sources.synthetic_set import SetProvenance
    from mammo_fed.synthesis.adversarial import Losses

__all__ = ["add_gan_commands"]

OVERRIDES: Final = """
settings are given as key=value; `--cfg job` prints them all. The most used:
  data=phantom|mammo_dp|csv|cohort   data.root=PATH    whose masses
  gan=mcgan_64|mcgan_128|mcgan_paper   gan.steps=6000  the networks and their training
  privacy.target_epsilon=6   privacy.unit=patient|image   inf (the default) trains without privacy, on public cohorts
  donor.num_sites=4 donor.index=0                       one hospital of a simulated federation
  seed=0   threads=2   hydra.run.dir=FOLDER

A training that was interrupted goes on with --resume FOLDER. Losses, samples and TensorBoard's scalars lie in the folder.
Patients who are not public need --site: their site's policy and ledger then hold.
"""
LINE_EVERY: Final = 100


def add_gan_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `gan train|sample|evaluate|import|check` to the command line."""
    text = "synthetic masses from a malignancy-conditioned GAN: train it, draw a set, judge it"
    gan = commands.add_parser("gan", help=text, description=text)
    below = gan.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, text: str, command: Command) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = below.add_parser(
            name,
            help=text,
            description=text,
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command)
        return added

    train = add("train", "train a generator on a donor's masses, with or without differential privacy", _train)
    train.epilog = OVERRIDES
    train.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    train.add_argument("--cfg", choices=["job"], help="print the configuration and stop")
    train.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with an interrupted training, as it was begun")
    train.add_argument("--site", type=Path, metavar="FOLDER", help="train on this site's cohort, under its policy and ledger")
    sample = add("sample", "draw a synthetic set from a finished training, with its provenance", _sample)
    sample.add_argument("run", type=Path, metavar="RUN", help="folder of `gan train`")
    sample.add_argument("--output", type=Path, required=True, metavar="SET", help="new folder of the set")
    sample.add_argument("--count", type=int, default=3000, help="images, half of them malignant; default 3000")
    sample.add_argument("--seed", type=int, default=0, help="of the latent numbers")
    sample.add_argument("--step", type=int, help="another step than the last; the provenance says that it was chosen")
    sample.add_argument("--licence", help="of the images; default that of the donor's data set")
    add_judge_command(add)
    imported = add("import", "make a synthetic set of the paper's 3,000 images, with their true provenance", _import)
    imported.add_argument("clone", type=Path, metavar="CLONE", help="a clone of RichardObi/mammo_dp")
    imported.add_argument("--output", type=Path, required=True, metavar="SET", help="new folder of the set")
    check = add("check", "check every byte of a synthetic set against its hash, and say where it comes from", _check)
    check.add_argument("set", type=Path, metavar="SET", help="folder of the set")
    check.add_argument("--sha256", help="the hash that it must have, known from elsewhere")


def _train(options: argparse.Namespace, console: Console) -> int:
    composed = _composed(options)
    if options.cfg:
        sys.stdout.write(composed.yaml)
        return 0
    # Imported late: torch takes seconds, and --help should not.
    from mammo_fed.client.generator.training import start_training
    from mammo_fed.client.generator.training_folder import new_private_folder, read_training

    folder = composed.folder
    if not options.resume:
        _check_fresh(folder)
        new_private_folder(folder)
        write_atomically(folder / "config.yaml", composed.yaml)
    with _Bar(console, "steps", quiet=options.json) as bar:

        def told(step: int, steps: int, losses: Losses) -> None:
            bar.update(step, steps, f"step {step} of {steps}: generator {losses.generator:.3f}, fake {losses.fake:.3f}")

        start_training(composed.settings, folder, site_folder=options.site, progress=told)
    training = read_training(folder)
    promised = _promise(training, composed)
    if options.json:
        print_json({"folder": str(folder.resolve()), "steps": composed.settings.gan.steps, "privacy": promised})
        return 0
    say(
        console,
        f"privacy:   {promised}",
        f"training:  {folder.resolve()}",
        f"draw a set: mammo-fed gan sample {folder} --output SET",
    )
    return 0


def _composed(options: argparse.Namespace) -> ComposedGan:
    if options.resume is None:
        return compose_gan(options.overrides)
    if options.overrides:
        raise InvalidSetting(f"--resume goes on as it was begun: {options.overrides[0]} cannot change that; leave it out")
    return read_composed_gan(options.resume)


def _check_fresh(folder: Path) -> None:
    if (folder / "training.json").exists():
        raise InvalidSetting(f"hydra.run.dir={folder} holds a training: go on with --resume {folder}, or choose another folder")


def _promise(training: Any, composed: ComposedGan) -> str:
    privacy = composed.settings.privacy
    if training.event is None:
        return "none: the images may tell of the donor's patients, and no epsilon of a later run covers that"
    if training.injected:
        return "none: the noise was injected and anyone can draw it again"
    return f"(epsilon={epsilon_text(privacy.target_epsilon)}, delta={delta_text(privacy.delta)}) for each {privacy.unit}"


def _sample(options: argparse.Namespace, console: Console) -> int:
    from mammo_fed.client.generator.export import sample_set

    composed = read_composed_gan(options.run)
    with _Bar(console, "images", quiet=options.json) as bar:
        provenance = sample_set(
            composed.settings,
            options.run,
            options.output,
            count=options.count,
            seed=options.seed,
            step=options.step,
            licence=options.licence,
            progress=lambda done, total: bar.update(done, total, ""),
        )
    _tell(provenance, options, console, folder=options.output)
    return 0


def _import(options: argparse.Namespace, console: Console) -> int:
    from mammo_fed.client.generator.export import import_paper_set

    _tell(import_paper_set(options.clone, options.output), options, console, folder=options.output)
    return 0


def _check(options: argparse.Namespace, console: Console) -> int:
    from mammo_fed.data.sources.synthetic_set import read_synthetic_set

    _, provenance = read_synthetic_set(options.set, expected_sha256=options.sha256)
    _tell(provenance, options, console, folder=options.set)
    return 0


def _tell(provenance: SetProvenance, options: argparse.Namespace, console: Console, *, folder: Path) -> None:
    if options.json:
        print_json({"folder": str(folder.resolve()), "kind": provenance.kind, **_as_dict(provenance)})
        return
    donor, privacy = provenance.donor, provenance.privacy
    promise = (
        "none"
        if privacy is None or privacy.noise == "injected"
        else f"(epsilon={epsilon_text(privacy.epsilon)}, delta={delta_text(privacy.delta)}) for each {privacy.unit}"
    )
    say(
        console,
        f"set:       {folder.resolve()}",
        f"images:    {provenance.images:,} of {provenance.image_size} pixels, {provenance.malignant:,} malignant",
        f"trained on: {donor.name} ({donor.images:,} images of {donor.patients:,} patients)",
        f"privacy:   {promise}",
        f"licence:   {provenance.licence}",
        f"sha256:    {provenance.sha256}",
        f"use it:    mammo-fed simulate synthesis.source=folder synthesis.root={folder}",
    )


def _as_dict(provenance: SetProvenance) -> dict[str, Any]:
    from mammo_fed.common.serialization import plain

    values: dict[str, Any] = plain(provenance)
    return values


class _Bar:
    """A bar on a terminal, a line every so often elsewhere."""

    def __init__(self, console: Console, what: str, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)

    def __enter__(self) -> _Bar:
        self._bar.start()
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, line: str) -> None:
        """Note that `done` of `total` are done."""
        self._bar.update(self._task, completed=done, total=total)
        if line and not self._quiet and (done % LINE_EVERY == 0 or done == total):
            say(self._bar.console, line)
