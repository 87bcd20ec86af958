"""mammo-fed gan evaluate: judge synthetic sets against real masses, on one page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mammo_fed.common.command_line import Command, print_json, say, warn
from mammo_fed.errors import InvalidSetting
from mammo_fed.settings.compose import compose_gan

if TYPE_CHECKING:
    from mammo_fed.client.generator.evaluation import EvaluatedSet, Evaluation

__all__ = ["add_judge_command"]

EPILOG: Final = """
what the sets are held against is given as key=value, as for `gan train`: data=mammo_dp, donor.num_sites=4 donor.index=0, ...
Every figure depends on real images and no epsilon covers it. The page shows real images: it stays at the donor's site.
"""
# As mammo_fed.client.generator.evaluation calls them; that module takes seconds to import.
HELD_OUT_ROW: Final = "real, held out"
DESCRIPTORS: Final = ("efficientnet", "inception")


def add_judge_command(add: Callable[[str, str, Command], argparse.ArgumentParser]) -> None:
    """Add `evaluate` with `add(name, text, command)`."""
    text = "judge synthetic sets against real masses: fidelity, classes, artefacts, memorisation; figures and a page"
    evaluate = add("evaluate", text, _evaluate)
    evaluate.epilog = EPILOG
    evaluate.add_argument("sets", nargs="+", metavar="SET|key=value", help="folders of sets; and settings of the real masses")
    evaluate.add_argument(
        "--output", type=Path, metavar="FOLDER", help="new folder for page and figures; default none is written"
    )
    evaluate.add_argument("--descriptor", choices=DESCRIPTORS, default="efficientnet", help="what images are compared by")
    evaluate.add_argument("--frd", action="store_true", help="the Frechet radiomics distance too, by frd-score; slow")
    evaluate.add_argument("--side", type=int, help="pixels at which all are compared; default the smallest set's")
    evaluate.add_argument("--no-baselines", action="store_true", help="leave out noise and an untrained generator")
    evaluate.add_argument("--site", type=Path, metavar="FOLDER", help="hold them against this site's cohort")


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    from mammo_fed.client.generator.evaluation import evaluate_sets, write_evaluation

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
    if page is not None:
        say(console, f"page: {page.resolve()}")
        if not evaluation.public:
            warn(console, "the page shows patients' images: it stays at this site")
    return 0


Columns = tuple[tuple[str, Callable[["EvaluatedSet"], str]], ...]
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
