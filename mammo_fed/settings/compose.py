"""Hydra at the command line: overrides in, frozen settings out, one clear line for what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mammo_fed.common.serialization import plain, printable
from mammo_fed.errors import InvalidSetting
from mammo_fed.settings import Settings
from mammo_fed.settings.gan import GanSettings
from mammo_fed.settings.overrides import Overrides, combinations

__all__ = [
    "Composed",
    "ComposedGan",
    "compose_gan",
    "compose_settings",
    "expand_sweep",
    "read_composed",
    "read_composed_gan",
    "read_configuration",
    "settings_yaml",
]

# By its path, and inside the package: a folder `configs` elsewhere on the path is another matter.
CONFIGURATION = Path(str(resources.files("mammo_fed"))) / "configs"


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A composed configuration.

    Attributes:
      settings: checked and frozen.
      yaml: the configuration as text, for the run folder and `--cfg job`.
      folder: of the run (hydra.run.dir).
      sweep_folder: of a sweep (hydra.sweep.dir).
    """

    settings: Settings
    yaml: str
    folder: Path
    sweep_folder: Path


@dataclass(frozen=True, kw_only=True)
class ComposedGan:
    """A composed configuration of a generator's training; attributes as `Composed`."""

    settings: GanSettings
    yaml: str
    folder: Path


def compose_settings(overrides: Sequence[str]) -> Composed:
    """Compose the configuration tree with overrides such as `data=mammo_dp` or `privacy.target_epsilon=1`.

    Raises:
      InvalidSetting: If an override cannot be parsed, names no setting, or gives a value of the wrong type or range.
    """
    values, folder, sweep_folder = _composed("config", overrides, command="simulate")
    return Composed(
        settings=Settings.from_mapping(values),
        yaml=OmegaConf.to_yaml(OmegaConf.create(values)),
        folder=folder,
        sweep_folder=sweep_folder,
    )


def compose_gan(overrides: Sequence[str]) -> ComposedGan:
    """Compose what a generator is trained with, from overrides such as `data=mammo_dp` or `gan=mcgan_128`.

    Raises:
      InvalidSetting: As `compose_settings`.
    """
    values, folder, _ = _composed("gan", overrides, command="gan train")
    return ComposedGan(
        settings=GanSettings.from_mapping(values), yaml=OmegaConf.to_yaml(OmegaConf.create(values)), folder=folder
    )


def read_composed_gan(folder: Path) -> ComposedGan:
    """What a generator's training was composed from, read back from its folder.

    Raises:
      InvalidSetting: If there is none, or it is damaged or of another version.
    """
    values, text = _read(folder)
    return ComposedGan(settings=GanSettings.from_mapping(values), yaml=text, folder=folder)


def _composed(name: str, overrides: Sequence[str], *, command: str) -> tuple[Any, Path, Path]:
    """Plain values, run folder and sweep folder of a configuration."""
    setup_globals()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGURATION.resolve()), version_base="1.3"):
            given = Overrides.read(overrides)
            if overrides:
                _check_keys(given, _known_keys(name), command=command)
            parsed = [str(override.input_line) for override in given.parsed]
            config = compose(name, overrides=parsed, return_hydra_config=True)
        with open_dict(config):
            for key, value in given.literal.items():
                OmegaConf.update(config, key, value)
        folder, sweep_folder = (_folder(config, key) for key in ("hydra.run.dir", "hydra.sweep.dir"))
        job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return OmegaConf.to_container(job, resolve=True, throw_on_missing=True), folder, sweep_folder
    except MissingConfigException as error:
        raise InvalidSetting(_choices(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InvalidSetting(_one_line(error)) from error


def _folder(config: DictConfig, key: str) -> Path:
    if not (found := str(OmegaConf.select(config, key) or "")):
        # Not the current folder: who gives an empty variable of the shell did not mean it.
        raise InvalidSetting(f"{key}= must name a folder; is a variable of the shell empty?")
    return Path(found)


def read_composed(folder: Path) -> Composed:
    """What a run was composed from, read back from the config.yaml of its folder.

    Raises:
      InvalidSetting: If there is none, or it is damaged or of another version.
    """
    values, text = _read(folder)
    return Composed(settings=Settings.from_mapping(values), yaml=text, folder=folder, sweep_folder=folder)


def _read(folder: Path) -> tuple[Any, str]:
    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        return OmegaConf.to_container(OmegaConf.create(text), resolve=True), text
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read ({error.strerror}); give a run's folder") from error
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise InvalidSetting(f"{path} is not a run's configuration ({_one_line(error)}); restore it from a backup") from error


def settings_yaml(settings: Settings) -> str:
    """Settings as the text of a config.yaml, for `read_composed`."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(settings)))


def read_configuration(name: str) -> Any:
    """A file of the configuration tree that is data rather than settings, as plain values."""
    text = (CONFIGURATION / name).read_text(encoding="utf-8")
    return OmegaConf.to_container(OmegaConf.create(text))


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the comma-separated values in `overrides`, in their order.

    Raises:
      InvalidSetting: If an override cannot be parsed.
    """
    return combinations(overrides)


@lru_cache(maxsize=2)
def _known_keys(name: str) -> tuple[str, ...]:
    """Every key of the default configuration, groups included; needs an initialised Hydra."""
    return tuple(sorted(_names(OmegaConf.to_container(compose(name), resolve=False))))


def _check_keys(overrides: Overrides, names: Sequence[str], *, command: str) -> None:
    """Name an unknown key and its nearest neighbours before Hydra answers with several lines."""
    for key, value in overrides.literal.items():
        if (CONFIGURATION / key).is_dir():
            raise InvalidSetting(f"{key}={printable(value)} must be one of {', '.join(_options(key))}")
    changed = [str(override.key_or_group) for override in overrides.parsed if not override.is_add()]
    for key in (*changed, *overrides.literal):
        if key in names or key.startswith("hydra"):
            continue
        near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"see mammo-fed {command} --cfg job"
        raise InvalidSetting(f"{key} is not a setting; {hint}")


def _options(group: str) -> list[str]:
    """The choices of a group."""
    return sorted(path.stem for path in (CONFIGURATION / group).glob("*.yaml"))


def _names(values: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from _names(value, f"{prefix}{key}.")


def _choices(error: MissingConfigException) -> str:
    """What a group can be, where an override names a choice that it does not have."""
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    if not group or not error.options:
        return _one_line(error)
    return f"{group}={choice} must be one of {', '.join(sorted(error.options))}"


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
