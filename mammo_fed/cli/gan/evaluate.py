"""mammo-fed gan evaluate: compare synthetic sets with real masses, on one page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mammo_fed.client.generator.evaluation import HELD_OUT_ROW, EvaluatedSet, Evaluation, evaluate_sets, write_evaluation
from mammo_fed.common.command_line import print_json, say, warn
from mammo_fed.errors import InvalidSetting
from mammo_fed.settings.compose import compose_gan

__all__ = ["evaluate_command"]


def evaluate_command(options: argparse.Namespace, console: Console) -> int:
    """Evaluate sets, print figures, and write the page where one is asked for; the exit code.

    Raises:
      InvalidSetting: If no set is given, or the output folder holds something.
    """
    sets = [Path(argument) for argument in options.sets if "=" not in argument]
    overrides = [argument for argument in options.sets if "=" in argument]
    if not sets:
        raise InvalidSetting("SET is missing; give the folder of a synthetic set, see `mammo-fed gan sample`")
    if options.output is not None and options.output.exists() and any(options.output.iterdir()):
        raise InvalidSetting(f"--output={options.output} holds something: nothing is overwritten; choose another folder")
    settings = compose_gan(overrides).settings
    evaluation = evaluate_sets(
        settings,
        sets,
        site_folder=options.site,
        name=options.descriptor,
        radiomics=options.frd,
        side=options.side,
        baselines=not options.no_baselines,
        progress=(lambda _: None) if options.json else lambda line: say(console, line),
    )
    page = None if options.output is None else write_evaluation(evaluation, options.output)
    if options.json:
        print_json(evaluation.as_dict())
        return 0
    Console().print(_table(evaluation, FIDELITY, title=evaluation.title))
    Console().print(_table(evaluation, LINES, title="classes, artefacts, memorisation"))
    for one in evaluation.sets:
        if one.radiomics is not None:
            say(console, f"Frechet radiomics distance of {one.name}: {one.radiomics:.3f}")
        if len(one.quality.memorisation.copies) and one.kind != "real":
            warn(console, f"{one.name}: {len(one.quality.memorisation.copies)} images are copies of training images")
        if one.held_out_seen == "some":
            warn(
                console,
                f"{one.name}: its generator saw patients who are held out here; memorisation and TSTR speak of no others",
            )
    if page is not None:
        say(console, f"page: {page.resolve()}")
        if not evaluation.public:
            warn(console, "the page shows patients' images: it stays at this site")
    return 0


Columns = tuple[tuple[str, Callable[[EvaluatedSet], str]], ...]
FIDELITY: Final[Columns] = (
    ("Frechet", lambda one: f"{one.quality.frechet:.1f}"),
    ("precision", lambda one: f"{one.quality.neighbourhood.precision:.3f}"),
    ("recall", lambda one: f"{one.quality.neighbourhood.recall:.3f}"),
    ("density", lambda one: f"{one.quality.neighbourhood.density:.3f}"),
    ("coverage", lambda one: f"{one.quality.neighbourhood.coverage:.3f}"),
)
LINES: Final[Columns] = (
    ("consistency", lambda one: f"{one.quality.consistency:.3f}"),
    ("TSTR AUROC", lambda one: _tstr(one)),
    (
        "checker\nN/2, N/4",
        lambda one: f"{one.quality.artefacts.checkerboard_half:.1f}\n{one.quality.artefacts.checkerboard_quarter:.1f}",
    ),
    ("wrapped", lambda one: f"{one.quality.artefacts.wrapped:.0e}"),
    ("nearest\nratio", lambda one: f"{one.quality.memorisation.ratio:.2f}"),
    ("copies", lambda one: str(len(one.quality.memorisation.copies))),
)


def _tstr(one: EvaluatedSet) -> str:
    if one.name == HELD_OUT_ROW:
        return ""
    return f"{one.quality.tstr:.3f}\n[{one.quality.tstr_ci[0]:.3f}, {one.quality.tstr_ci[1]:.3f}]"


def _table(evaluation: Evaluation, columns: Columns, *, title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("set", max_width=20)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for one in evaluation.sets:
        table.add_row(one.name, *(value(one) for _, value in columns))
    return table
