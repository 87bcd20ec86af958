"""mammo-fed audit: try to refute a finished run's privacy claim by repeating what one of its sites did."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mammo_fed.audit.canaries import CANARIES, CanaryKind
from mammo_fed.audit.finished_run import FinishedRun
from mammo_fed.audit.membership import FEWEST_SHADOWS, Membership
from mammo_fed.audit.noise.adversary import FALSE_ALARM
from mammo_fed.audit.report import AuditReport, audit_subject
from mammo_fed.audit.trials import Progress as OnProgress
from mammo_fed.cli.options import REPORT_NAME, SHADOWS
from mammo_fed.common.command_line import print_json
from mammo_fed.common.private_files import write_atomically
from mammo_fed.common.serialization import dumps
from mammo_fed.errors import InvalidSetting, PolicyRefused
from mammo_fed.reporting.formatting import delta_text, epsilon_text
from mammo_fed.reporting.plots.svg import GRID, SERIES, draw, legend

__all__ = ["audit", "audit_run"]

# A closed-form trial takes a hundredth of a second, one of Poisson DP-SGD a tenth.
TRIALS: Final = {"dp_gd": 1500, "dp_sgd": 500}
FAILED: Final = 1


def audit_run(
    run: Path,
    *,
    site: str | None = None,
    trials: int | None = None,
    canaries: Sequence[CanaryKind] = CANARIES,
    shadows: int = SHADOWS,
    seed: int = 0,
    at_site: bool = False,
    jobs: int = 1,
    progress: OnProgress = lambda *_: None,
) -> AuditReport:
    """Audit one site of a finished run. It releases nothing and charges nothing: trials and shadow models are thrown away.

    Args:
      run: folder of the run, with its configuration, record, model and sites.
      site: name of the site whose messages are seen; None takes the one with the fewest (public) patients.
      trials: scored runs on each side, and runs in which the noise is looked at, see mammo_fed.audit.report; None is 1500 in
        closed form, 500 under Poisson DP-SGD.
      canaries: which.
      shadows: models for the likelihood ratio of membership inference; 0 leaves membership inference out.
      seed: of everything but the noise.
      at_site: whether the audit stays at the site that the patients belong to; needed where they are not public.
      jobs: processes for the trials, >= 1.
      progress: callback with how far it is.

    Raises:
      DataError: If the folder holds no finished run with its sites, or something it rests on has changed since.
      InvalidSetting: If the run promised nothing, or an argument is out of its range.
      PolicyRefused: If the patients are not public and `at_site` is not given.
    """
    if shadows and shadows < FEWEST_SHADOWS:
        raise InvalidSetting(f"shadows={shadows} must be 0 or at least {FEWEST_SHADOWS}; check --shadows")
    started, finished = time.perf_counter(), FinishedRun(run)
    if not (finished.pool.cohort.public or at_site):
        raise PolicyRefused(
            "the patients of this run are not declared public: an audit repeats releases and shows what they tell of single "
            "patients; run it at their own site with --at-site, and let its report stay there"
        )
    subject = finished.smallest if site is None else finished.site(site)
    report = audit_subject(
        subject,
        run_id=finished.record.run_id,
        trials=TRIALS[finished.settings.privacy.mechanism] if trials is None else trials,
        canaries=canaries,
        seed=seed,
        jobs=jobs,
        progress=progress,
    )
    membership = finished.membership(shadows=shadows, seed=seed, progress=progress) if shadows else None
    return replace(report, membership=membership, seconds=time.perf_counter() - started)


def audit(options: argparse.Namespace, console: Console) -> int:
    """Audit a run, and write and print the report; the exit code."""
    with _Bars(console, quiet=options.json) as bars:
        report = audit_run(
            options.run,
            site=options.site,
            trials=options.trials,
            canaries=tuple(dict.fromkeys(options.canary or CANARIES)),
            shadows=options.shadows,
            seed=options.seed,
            at_site=options.at_site,
            jobs=options.jobs,
            progress=bars.show,
        )
    path = options.output or options.run / REPORT_NAME
    write_atomically(path, dumps(report.as_dict()))
    if options.plot and report.membership is not None:
        write_atomically(options.plot, _membership_curves(report.membership))
    if options.json:
        print_json(report.as_dict())
    else:
        Console().print(_tables(report))
        console.print(f"report: {path.resolve()}", markup=False, highlight=False, soft_wrap=True)
    return 0 if report.passed else FAILED


class _Bars:
    """One bar for each part of the audit."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=quiet)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Show how far a part is."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done)


def _tables(report: AuditReport) -> Group:
    """The report for a terminal of 80 columns."""
    curve = "its privacy loss distribution" if report.mu is None else f"a Gaussian of mu {report.mu:.3f}"
    claim = (
        f"Claim: epsilon {epsilon_text(report.epsilon)} at delta {delta_text(report.delta)} for one {report.unit} of "
        f"{report.site}, as {curve}. The adversary sees its {report.messages} messages and knows everybody else."
    )
    parts: list[Any] = [Text(claim), _canary_table(report)]
    if report.membership is not None:
        parts.append(_membership_table(report.membership))
    parts.append(Text(_noise_text(report)))
    moves = ", ".join(f"{name} {move:.6f}" for name, move in report.sensitivity.items())
    parts.append(Text(f"Largest move by one unit, over its clipping norm: {moves}. {report.seconds:.0f} seconds."))
    if report.passed:
        parts.append(
            Text("Passed: nothing here refutes the claim. An audit can refute a claim, never prove it.", style="green")
        )
    else:
        parts.append(Text("FAILED: " + "; ".join(report.faults), style="red"))
    return Group(*parts)


def _canary_table(report: AuditReport) -> Table:
    table = _table("Lower bounds on epsilon, 95 % confidence")
    table.add_column("canary", no_wrap=True)
    for column in ("runs\na side", "false\npos.", "false\nneg.", "by the\ncurve", "assuming\nnothing", "claim at\n99.9 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for found in report.canaries:
        table.add_row(
            found.canary,
            f"{found.trials:,}",
            f"{found.false_positives:,}",
            f"{found.false_negatives:,}",
            f"{found.epsilon_lower:.3f}",
            f"{found.epsilon_assumption_free:.3f}",
            "REFUTED" if found.rejected else "stands",
        )
    return table


def _noise_text(report: AuditReport) -> str:
    """What the checks of the noise say in one sentence; their faults are among the report's."""
    noise = report.noise
    failed = [check.name for check in noise.checks if check.failed]
    said = f"{len(failed)} FAILED: {', '.join(failed)}" if failed else "all passed"
    return (
        f"Noise: {noise.draws:,} draws of {noise.runs:,} runs of two sites, {len(noise.checks)} checks of its size, shape, "
        f"repeats and samples; {said}. Sound noise fails one in fewer than 1 of {1 / FALSE_ALARM:,.0f} audits."
    )


def _membership_table(found: Membership) -> Table:
    table = _table(f"Membership in the released model: {found.members} members, {found.others} held-out patients")
    table.add_column("attack", no_wrap=True)
    for column in ("AUC\n[95 % CI]", "found at 1 %\nfalse positives"):
        table.add_column(column, justify="right", no_wrap=True)
    for attack in found.attacks:
        table.add_row(attack.name, _interval(attack.auc, attack.auc_ci), _interval(attack.tpr, attack.tpr_ci))
    table.add_row("allowed by the claim", f"{found.auc_allowed:.3f}", f"{found.tpr_allowed:.3f}")
    return table


def _membership_curves(found: Membership) -> str:
    """Members found over false positives, for each attack and as far as the claim allows, as an `<svg>` element."""
    curves = {attack.name: attack.curve for attack in found.attacks} | {"allowed by the claim": found.curve_allowed}

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
        lines = []
        for curve, (colour, dash, _) in zip(curves.values(), SERIES, strict=False):
            lines += axes.plot(*zip(*curve, strict=True), color=colour, linestyle=dash)
        legend(axes, lines, list(curves), loc="lower right")

    label = "Membership inference: " + "; ".join(f"{attack.name} AUC {attack.auc:.3f}" for attack in found.attacks)
    return draw("membership", paint, label=label, xlabel="Held-out patients called members", ylabel="Members found")


def _interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
