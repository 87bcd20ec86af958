"""mammo-fed gan sample, import and check: synthetic sets with their provenance."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from mammo_fed.cli.gan.bar import Bar
from mammo_fed.client.generator.export import import_paper_set, sample_set
from mammo_fed.common.command_line import print_json, say
from mammo_fed.common.serialization import plain
from mammo_fed.data.sources.synthetic_set import SetProvenance, read_synthetic_set
from mammo_fed.reporting.formatting import delta_text, epsilon_text
from mammo_fed.settings.compose import read_composed_gan

__all__ = ["check_command", "import_command", "sample_command"]


def sample_command(options: argparse.Namespace, console: Console) -> int:
    """Draw a set from a finished training; the exit code."""
    composed = read_composed_gan(options.run)
    with Bar(console, "images", quiet=options.json) as bar:
        provenance = sample_set(
            composed.settings,
            options.run,
            options.output,
            count=options.count,
            seed=options.seed,
            step=options.step,
            licence=options.licence,
            site_folder=options.site,
            progress=lambda done, total: bar.update(done, total, ""),
        )
    _say_provenance(provenance, options, console, folder=options.output)
    return 0


def import_command(options: argparse.Namespace, console: Console) -> int:
    """Make a set of the paper's images; the exit code."""
    _say_provenance(import_paper_set(options.clone, options.output), options, console, folder=options.output)
    return 0


def check_command(options: argparse.Namespace, console: Console) -> int:
    """Check a set against its hashes; the exit code."""
    _, provenance = read_synthetic_set(options.set, expected_sha256=options.sha256)
    _say_provenance(provenance, options, console, folder=options.set)
    return 0


def _say_provenance(provenance: SetProvenance, options: argparse.Namespace, console: Console, *, folder: Path) -> None:
    if options.json:
        print_json({"folder": str(folder.resolve()), "kind": provenance.kind, **plain(provenance)})
        return
    donor, privacy = provenance.donor, provenance.privacy
    promise = (
        "none"
        if privacy is None or privacy.noise == "injected"
        else f"(epsilon={epsilon_text(privacy.epsilon)}, delta={delta_text(privacy.delta)}) for each {privacy.unit}"
        + (", in exact arithmetic: the noise was drawn in floating point" if privacy.floating else "")
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
