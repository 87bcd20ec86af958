"""A federation of simulated hospitals from Python: settings in, the record out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mammo_fed.common.logs import LOG_NAME, log_to_file
from mammo_fed.errors import InvalidSetting
from mammo_fed.reporting.record.record import Record
from mammo_fed.server.results.progress_lines import round_lines
from mammo_fed.server.rounds.budget import BudgetView
from mammo_fed.server.run import Hooks
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_settings as compose
from mammo_fed.settings.compose import read_composed, settings_yaml
from mammo_fed.simulations.launch import simulate as launch
from mammo_fed.simulations.run_folder import make_run_folder

__all__ = ["compose_settings", "simulate"]


def compose_settings(overrides: Sequence[str] = ()) -> Settings:
    """Frozen settings: the defaults with the overrides of `mammo-fed simulate`.

    Args:
      overrides: such as "data=mammo_dp" or "privacy.target_epsilon=1".

    Raises:
      InvalidSetting: If an override cannot be parsed, names no setting, or gives a value of the wrong type or range.

    >>> settings = compose_settings(["privacy.target_epsilon=3", "federation.num_sites=2"])
    >>> settings.privacy.target_epsilon, settings.privacy.unit, settings.federation.num_sites
    (3.0, 'patient', 2)
    """
    return compose(list(overrides)).settings


def simulate(
    settings: Settings,
    folder: Path | str | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    resume: bool = False,
) -> Record:
    """Run a federation of simulated hospitals in this process and return its record.

    Guarantee: that of the record's `privacy` section, kept by a ledger for every site in the run folder, or where
    `settings.privacy.ledger` says.

    Args:
      settings: from `compose_settings`.
      folder: the run folder; made here, with config.yaml, record.json, report.html, the model and the sites' ledgers. None
        works in a temporary folder that is removed at the end: the record is all that stays. Beside it only the cache of
        features is written (`settings.engine.cache`).
      progress: called with a line after the declaration and after each round; `print` will do.
      resume: go on with the run that was interrupted in `folder`, after its last finished round and with the settings that it
        was begun with; a run that is done is read.

    Raises:
      InvalidSetting: If the folder holds a run already and `resume` is not set, or holds one that was begun
        otherwise, or there is none and the ledgers of patients would be lost with it.
      MammoFedError: For data that cannot be read, and for a run that cannot be completed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     settings = compose_settings([
    ...         "model=efficientnet_lite0", "model.weights=none", "model.input_size=32", "model.components=8",
    ...         "model.flips=none", "data.image_size=32", "data.images_train=24", "data.images_test=20",
    ...         "data.images_external=8", "synthesis.count=16", "synthesis.use=[whiten]",
    ...         "federation.num_sites=2", "federation.rounds=1", f"engine.cache={cache}",
    ...     ])
    ...     record = simulate(settings, progress=print)
    2 of 2 sites take part
    private mean  epsilon: site-1 ... (left ...), site-2 ... (left ...)
    round 1/1     epsilon: site-1 ... (left ...), site-2 ... (left ...)
    >>> [site.epsilon <= 6.0 for site in record.privacy.sites]
    [True, True]
    """
    if folder is not None:
        return _simulate(settings, Path(folder), progress, resume=resume)
    if resume:
        raise InvalidSetting("resume=True needs the folder of the run that was interrupted; give simulate a folder")
    if settings.data.source != "phantom" and not settings.data.public and settings.privacy.ledger == "run":
        raise InvalidSetting(
            "folder=None would lose the ledgers of patients with the temporary folder; give simulate a folder, or set "
            "privacy.ledger"
        )
    with tempfile.TemporaryDirectory(prefix="mammo-fed-") as temporary:
        return _simulate(settings, Path(temporary) / "run", progress, resume=False)


def _simulate(settings: Settings, folder: Path, progress: Callable[[str], None] | None, *, resume: bool) -> Record:
    if resume:
        # Before anything is written: the folder of another run, or of none, stays as it is.
        read_composed(folder)
    else:
        make_run_folder(folder, configuration=settings_yaml(settings))

    def after_round(index: int, rounds: int, budget: BudgetView) -> None:
        for line in round_lines(index, rounds, budget) if progress is not None else ():
            progress(line)  # type: ignore[misc]

    with log_to_file(folder / LOG_NAME):
        return launch(settings, folder, hooks=Hooks(round=after_round), resume=True)
