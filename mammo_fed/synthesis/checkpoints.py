"""Where a training stands, as one safe file: written whole or not at all, and enough to go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mammo_fed.common.private_files import sync_folder, write_private
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.synthesis.adversarial import Adversaries, Losses

__all__ = [
    "Custody",
    "checkpoint_path",
    "checkpoint_steps",
    "publish_drafts",
    "read_average",
    "read_checkpoint",
    "write_checkpoint",
]

FORMAT: Final = "mammo-fed gan checkpoint 1"
FOLDER: Final = "checkpoints"
PREFIX: Final = "step_"
DRAFT: Final = ".draft"


class Custody(Protocol):
    """Who answers for the checkpoints of a training that was paid for: of all copies of a folder, one goes on."""

    def mark(self, *, token: str, content_sha256: str, step: int) -> None:
        """Note a checkpoint before it has its name; raises where another copy of the training went on."""

    def check(self, *, content_sha256: str, step: int) -> None:
        """Raise unless this is the newest checkpoint that was noted; step 0 and "" where there is none."""


def checkpoint_path(run: Path, step: int) -> Path:
    """The file of a step."""
    return run / FOLDER / f"{PREFIX}{step:08d}.safetensors"


def checkpoint_steps(run: Path) -> list[int]:
    """Steps that there is a checkpoint of, ascending."""
    folder = run / FOLDER
    names = (path.stem.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*.safetensors")) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdigit())


def write_checkpoint(
    run: Path,
    adversaries: Adversaries,
    losses: Sequence[Losses],
    *,
    settings_sha256: str,
    custody: Custody | None = None,
) -> Path:
    """Write networks, optimizers and losses so far; on the disk when this returns.

    With a `custody` the file has a draft's name until it was noted there. A crash between the two leaves a draft, which
    `publish_drafts` gives its name or removes, as it was noted or not.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in _modules(adversaries).items():
        tensors |= {
            f"{name}.{key}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in module.state_dict().items()
        }
    for name, optimizer in _optimizers(adversaries).items():
        for place, values in optimizer.state_dict()["state"].items():
            tensors |= {
                f"{name}.{place}.{key}": torch.as_tensor(value).cpu().clone(memory_format=torch.contiguous_format)
                for key, value in values.items()
            }
    rows = [(one.step, one.generator, one.fake, math.nan if one.real is None else one.real) for one in losses]
    tensors["losses"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    path = checkpoint_path(run, adversaries.step)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = {"format": FORMAT, "step": str(adversaries.step), "settings": settings_sha256}
    content = save(tensors, metadata=about)
    if custody is None:
        return write_private(path, content)
    token = secrets.token_hex(16)
    draft = write_private(path.with_name(f".{path.name}.{token}{DRAFT}"), content)
    custody.mark(token=token, content_sha256=hashlib.sha256(content).hexdigest(), step=adversaries.step)
    return _publish(draft, path)


def publish_drafts(run: Path, tokens: Iterable[str]) -> None:
    """Give drafts that were noted under one of `tokens` their names, and remove all others: nobody paid for showing those."""
    known = set(tokens)
    folder = run / FOLDER
    for draft in sorted(folder.glob(f".{PREFIX}*{DRAFT}")) if folder.is_dir() else ():
        name, _, token = draft.name.removeprefix(".").removesuffix(DRAFT).rpartition(".")
        if token in known:
            _publish(draft, folder / name)
        else:
            draft.unlink()


def _publish(draft: Path, path: Path) -> Path:
    draft.replace(path)
    sync_folder(path.parent)
    return path


def read_checkpoint(run: Path, step: int, adversaries: Adversaries, *, settings_sha256: str) -> list[Losses]:
    """Bring `adversaries` to where they stood at `step`; returns the losses until then.

    Raises:
      InvalidSetting: If the checkpoint was written under other settings.
      DataError: If it is missing or damaged.
    """
    tensors = _tensors(checkpoint_path(run, step), settings_sha256=settings_sha256)
    for name, module in _modules(adversaries).items():
        module.load_state_dict(_below(tensors, name))
    for name, optimizer in _optimizers(adversaries).items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, name).items():
            place, _, what = key.partition(".")
            state.setdefault(int(place), {})[what] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    adversaries.step = step
    rows = tensors["losses"].tolist()
    return [Losses(step=int(at), generator=g, fake=f, real=None if math.isnan(r) else r) for at, g, f, r in rows]


def read_average(run: Path, step: int, average: nn.Module) -> None:
    """Load the moving average of the generator alone.

    Raises:
      DataError: If the checkpoint is missing or damaged.
    """
    average.load_state_dict(_below(_tensors(checkpoint_path(run, step), settings_sha256=None), "average"))


def _tensors(path: Path, *, settings_sha256: str | None) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise DataError(f"{path} is not a checkpoint of this version; train again in another folder")
            if settings_sha256 is not None and about.get("settings") != settings_sha256:
                raise InvalidSetting(f"{path} was written under other settings: give those, or another hydra.run.dir")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); restore it from a backup, or train again in another folder"
        ) from error


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _modules(adversaries: Adversaries) -> dict[str, nn.Module]:
    return {"generator": adversaries.generator, "discriminator": adversaries.discriminator, "average": adversaries.average}


def _optimizers(adversaries: Adversaries) -> dict[str, torch.optim.Optimizer]:
    return {"of_generator": adversaries.of_generator, "of_discriminator": adversaries.of_discriminator}
