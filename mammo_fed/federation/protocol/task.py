"""What the server asks of a site, the declaration of a whole run and the task of one round, and the JSON texts they travel in.

A text is of a version of the protocol. A field with a default may be absent in it; an unknown one is refused by name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from mammo_fed.common.serialization import LONG_TEXT, bounded_json, build, canonical_json, plain, printable, text_of
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.extensions.registry import NAME
from mammo_fed.federation.secure_aggregation.double_masks import Terms
from mammo_fed.models.heads import HeadSpec
from mammo_fed.privacy.events import Unit
from mammo_fed.privacy.names import Aggregation, NoiseMode
from mammo_fed.settings import ModelSettings

__all__ = [
    "DECLARATION_ROUND",
    "NOT_STARTED",
    "PROTOCOL_VERSION",
    "Declaration",
    "RoundTask",
    "SynthesisProvenance",
    "from_json",
    "from_message",
    "own_version",
    "task_hash",
    "to_message",
]

T = TypeVar("T")

PROTOCOL_VERSION: Final = 3
# Version 1 looks at no version, but refuses a field that it does not know: so it refuses a text of a later version before it
# charges anything.
MARK: Final = "protocol_version"

SynthesisProvenance: TypeAlias = Literal["procedural", "dp", "no_dp", "unknown"]
"""Whether the generator of a synthetic set saw patients, and with differential privacy."""

# Where a round's number is asked for: of a run that nobody has heard of, and of its declaration. 0 is the private mean.
NOT_STARTED: Final = -2
DECLARATION_ROUND: Final = -1

# The most that a declaration may ask for: beyond it a site's memory or time would be the server's to take.
LARGEST: Final = {
    "dims": 1 << 16,
    "rounds": 10**6,
    "local_steps": 10**6,
    "batch_size": 10**9,
    "synthetic_images": 10**7,
    "network_size": 1 << 28,
}
LARGEST_OF_MODEL: Final = {"input_size": 1 << 12, "hidden": 1 << 14}
MOST_BACKBONES: Final = 8

# Clipping norms that a site accepts.
CLIPS: Final = (1e-3, 1e3)


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """All that a run will ever ask of a site's patients, sent before the first output and priced whole.

    Attributes:
      run_id: of the run.
      model: how features are made; the site checks that it holds the same weights.
      weights_sha256: hash of the backbone weights at the server.
      whitening_sha256: hash of the public statistics that come with the declaration.
      synthesis_provenance: "procedural", "dp" (the generator saw patients with differential privacy), "no_dp" (without) or
        "unknown".
      dims: number of features.
      unit, target_epsilon, delta, accountant, mechanism: see mammo_fed.settings.PrivacySettings.
      clipping_norm, mean_clipping_norm, mean_fraction: of the releases.
      batch_size: expected images a step at each site; ignored by "dp_gd".
      rounds, local_steps: the schedule.
      noise: "secure" (on a public grid) or "float"; see mammo_fed.settings.PrivacySettings.
      noise_seed: injected noise; a site whose cohort is not public refuses it.
      keep_optimizer: the local optimizer goes on from round to round.
      synthetic_images, synthetic_sha256: the synthetic set that comes with the declaration for augmentation; none without it.
      augment_weight, sampler: see mammo_fed.settings.SynthesisSettings.
      network_size: numbers of a pretrained backbone that come with the declaration; 0 where sites use their own weights.
      aggregation: "plain" (the server sees each update), "masks" (it sees their sum) or "shared_noise" (their sum, which alone
        carries all of the noise).
      min_survivors, colluders: see mammo_fed.federation.secure_aggregation.double_masks.Terms; 1 and 0 where nothing is masked.
    """

    run_id: str
    model: ModelSettings
    weights_sha256: str
    whitening_sha256: str
    synthesis_provenance: SynthesisProvenance
    dims: int
    unit: Unit
    target_epsilon: float
    delta: float
    accountant: str
    mechanism: str
    clipping_norm: float
    mean_clipping_norm: float
    mean_fraction: float
    batch_size: int
    rounds: int
    local_steps: int
    noise: NoiseMode
    noise_seed: int | None
    keep_optimizer: bool = False
    synthetic_images: int = 0
    synthetic_sha256: str = ""
    augment_weight: float = 0.0
    sampler: Literal["separate", "mixed"] = "separate"
    network_size: int = 0
    aggregation: Aggregation = "plain"
    min_survivors: int = 1
    colluders: int = 0

    def __post_init__(self) -> None:
        if min(self.synthetic_images, self.network_size) < 0 or not (0 <= self.augment_weight < math.inf):
            raise InvalidSetting("synthetic_images, network_size and augment_weight must be at least 0 and finite")
        if self.model.flips == "random" and (self.mechanism != "dp_sgd" or self.mean_fraction > 0):
            # All views of an image are kept: only sampled steps draw one, other releases would not clip what they sum.
            raise InvalidSetting("model.flips=random belongs to privacy=dp_sgd with privacy.mean_fraction=0")
        self._check_sizes()
        self._check_aggregation()
        if not (NAME.fullmatch(self.mechanism) and NAME.fullmatch(self.accountant)) or self.accountant == "gdp":
            # Names of extensions are the site's to allow; here only that they are names, fit for a log.
            raise InvalidSetting("mechanism and accountant must be names, and accountant another one than gdp")
        if not (self.run_id.isascii() and self.run_id.isalnum() and len(self.run_id) <= 64):
            raise InvalidSetting("run_id must be 1 to 64 letters and digits")
        for name in ("clipping_norm", "mean_clipping_norm"):
            # Far outside, sums in floating point overflow or vanish before the noise is added, and the noise hides nothing.
            if not CLIPS[0] <= getattr(self, name) <= CLIPS[1]:
                raise InvalidSetting(f"privacy.{name}={getattr(self, name)} must be in [{CLIPS[0]:g}, {CLIPS[1]:g}]")

    def _check_sizes(self) -> None:
        """A declaration may come from a stranger: nothing is made of it before its numbers are ones that a run can have."""
        for owner, path, bounds in ((self, "", LARGEST), (self.model, "model.", LARGEST_OF_MODEL)):
            for name, most in bounds.items():
                if not getattr(owner, name) <= most:
                    raise InvalidSetting(f"{path}{name}={getattr(owner, name)} must be at most {most}")
        if len(self.model.backbone) > MOST_BACKBONES:
            raise InvalidSetting(f"model.backbone names {len(self.model.backbone)} networks, more than {MOST_BACKBONES}")

    def _check_aggregation(self) -> None:
        """A share of the noise hides one plain sum of clipped contributions on the grid, and nothing else."""
        if self.aggregation == "plain":
            if (self.min_survivors, self.colluders) != (1, 0):
                raise InvalidSetting("min_survivors and colluders belong to aggregation=masks and shared_noise")
            return
        self.terms(0)
        one_sum = self.mechanism == "dp_gd" and self.local_steps == 1 and self.noise == "secure" and not self.keep_optimizer
        if self.aggregation == "shared_noise" and not one_sum:
            raise InvalidSetting(
                "federation.secure.use=shared_noise needs one sum on the grid a round: privacy.mechanism=dp_gd, local_steps=1 "
                "and privacy.noise=secure"
            )

    @property
    def noise_shares(self) -> int:
        """Number of sites among which the noise is divided: what the declared adversary cannot take away from any sum."""
        return self.min_survivors - self.colluders if self.aggregation == "shared_noise" else 1

    def terms(self, round_index: int) -> Terms:
        """The terms of a round's masked sum."""
        return Terms(run_id=self.run_id, round_index=round_index, min_survivors=self.min_survivors, colluders=self.colluders)

    @property
    def mixed_images(self) -> int:
        """Synthetic images that are drawn together with a site's own."""
        return self.synthetic_images if self.sampler == "mixed" else 0

    @cached_property
    def head(self) -> HeadSpec:
        """Shape of the head that is trained."""
        return HeadSpec(kind=self.model.head, dims=self.dims, hidden=self.model.hidden, bias_scale=self.model.bias_scale)

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(self)

    @classmethod
    def from_json(cls, text: str) -> Declaration:
        """Inverse of `to_json`.

        Raises:
          InvalidSetting: If the text is not a declaration.
        """
        return from_json(cls, text, path="declaration")


@dataclass(frozen=True, kw_only=True)
class RoundTask:
    """One round at a site.

    Attributes:
      run_id: of the run that was declared.
      round_index: 0 for the private mean, then 1 to `Declaration.rounds`.
      kind: "mean" or "train".
      learning_rate, weight_decay, optimizer, label_smoothing, proximal: of the local steps; they cost no privacy.
    """

    run_id: str
    round_index: int
    kind: Literal["mean", "train"]
    learning_rate: float
    weight_decay: float
    optimizer: Literal["sgd", "adamw"]
    label_smoothing: float
    proximal: float

    def __post_init__(self) -> None:
        if (self.kind == "mean") != (self.round_index == 0) or self.round_index < 0:
            raise InvalidSetting(f"round_index={self.round_index} must be 0 for the mean and above 0 for training")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InvalidSetting(
                f"learning_rate={self.learning_rate} must be a finite number above 0; check privacy.learning_rate"
            )

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(self)

    @classmethod
    def from_json(cls, text: str) -> RoundTask:
        """Inverse of `to_json`.

        Raises:
          InvalidSetting: If the text is not a task.
        """
        return from_json(cls, text, path="task")


def task_hash(task: RoundTask, *, feature_mean: NDArray[np.float32], parameters: NDArray[np.float32]) -> str:
    """Hash of everything that decides what a round does with its patients, 64 hex digits."""
    digest = hashlib.sha256(task.to_json().encode())
    for array in (feature_mean, parameters):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


def own_version() -> int:
    """The version that this program speaks."""
    return PROTOCOL_VERSION


def to_message(value: Any) -> str:
    """Canonical JSON of a dataclass as it travels, marked with this program's version."""
    return canonical_json({**plain(value), MARK: own_version()})


def from_message(cls: type[T], text: object, *, path: str) -> T:
    """Inverse of `to_message`, for a message whose version was checked; `text` is what stands where the text should.

    Raises:
      InvalidSetting: As `from_json`.
    """
    values = _parsed(text, path)
    values.pop(MARK, None)
    return _built(cls, values, path)


def from_json(cls: type[T], text: str, *, path: str) -> T:
    """A dataclass from its JSON.

    Args:
      cls: a dataclass.
      text: JSON with its fields; those with a default may be absent.
      path: what the text is, for messages.

    Raises:
      InvalidSetting: If the text is no JSON object, or a field is unknown, missing or of the wrong type.
    """
    return _built(cls, _parsed(text, path), path)


def _parsed(text: object, path: str) -> dict[str, Any]:
    try:
        values = bounded_json(text_of(text, path, most=LONG_TEXT), most=LONG_TEXT)
    except DataError as error:
        raise InvalidSetting(f"{path} is not valid JSON within its bounds: {error}") from error
    if not isinstance(values, dict):
        raise InvalidSetting(f"{path} must be a JSON object")
    return values


def _built(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(names)):
        raise InvalidSetting(
            f"{path}.{printable(unknown[0])} is not a field of protocol version {own_version()}; it is refused"
        )
    return build(cls, _completed(cls, values), path=path)


def _completed(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the defaults of absent fields, also of nested dataclasses."""
    hints, complete = get_type_hints(cls), dict(values)
    for field in fields(cls):
        nested, hint = complete.get(field.name), hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(nested, Mapping):
            complete[field.name] = _completed(hint, nested)
        elif field.name not in complete and _has_default(field):
            complete[field.name] = plain(_default(field))
    return complete


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
