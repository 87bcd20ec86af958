"""A site's own rules. No server can loosen them, and a refusal reveals nothing but that there was one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_type_hints

from mammo_fed.common.private_files import write_private
from mammo_fed.common.serialization import build, canonical_json
from mammo_fed.errors import DataError, InvalidSetting, PolicyRefused
from mammo_fed.extensions.kinds import ACCOUNTANTS, BACKBONES, MECHANISMS
from mammo_fed.privacy.events import DEFAULT_ACCOUNT, Unit, check_name
from mammo_fed.privacy.names import MOST_COUNT, Aggregation, FilterKind
from mammo_fed.settings import DataSettings
from mammo_fed.settings.checks import Auto
from mammo_fed.settings.data import Partition

if TYPE_CHECKING:
    # It brings the networks along, and who only reads a site's file has no use for them.
    from mammo_fed.federation.protocol.task import Declaration

__all__ = ["SiteFile", "SitePolicy", "check_declaration", "read_site_file", "read_toml"]


# Keys that a site file may leave out.
DATA_DEFAULTS: Final[Mapping[str, object]] = {"waived": []}
DEFAULTS: Final[Mapping[str, object]] = {
    "account": DEFAULT_ACCOUNT,
    "filter": "auto",
    "aggregation": ["plain", "masks"],
    "most_noise_shares": 1,
    "weights": ["wheel", "none"],
    "extensions": [],
    "public_account": False,
    "allow_plans": True,
}


@dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """What a site allows, and the numbers that it declares public.

    Attributes:
      max_epsilon: of all runs on the site's patients together; may be infinite for public cohorts.
      delta: at which `max_epsilon` is meant.
      min_patients: the site takes no part with fewer.
      max_images_per_patient: enforced before training; further images of a patient are left out.
      public_patients, public_images: size of the cohort, declared public; the only denominators and weights.
      public_class_balance: whether the share of malignant images may be published.
      units: units of privacy that the site accepts.
      scopes: parts of the model that the site trains.
      provenance: origins of a synthetic set that the site accepts.
      account: name of the budget that runs are charged to; a patient known to two accounts makes them one.
      filter: how an account enforces its budget, fixed when it opens (see mammo_fed.privacy.accounting.filters). "auto" opens
        "gdp" for full-batch runs and "declared" for sampled ones, and later keeps what is open. A site that expects both kinds
        of runs on the same patients sets "rdp" or "declared" before the first: "gdp" takes no sampled steps.
      aggregation: how the site lets its updates be added up. "shared_noise" rests on other sites' honesty, so a site file must
        name it.
      most_noise_shares: largest number of sites among which "shared_noise" may divide the noise. A server that controls all
        other sites faces the site's own share alone: with k shares its mu is sqrt(k) times the declared one.
      weights: where the weights of frozen networks may come from: "wheel" (an installed package), "none" (drawn), "timm" (its
        hub on the internet), or the path of a file. A network that comes with the declaration needs no entry.
      extensions: what the site runs of other distributions installed here, such as "mechanism:NAME", "accountant:NAME" or
        "backbone:NAME". Nothing else is imported for a run, and a run that needs it is refused.
      public_account: whether replies say what all runs in the ledger cost these patients and what is left of the budget. Both
        change when one patient is in the cohorts of two accounts, so that one study's server would learn of another study.
      allow_plans: whether the server may ask, at most 24 times a day, if a run would be taken, without declaring it.
    """

    max_epsilon: float
    delta: float
    min_patients: int
    max_images_per_patient: int
    public_patients: int
    public_images: int
    public_class_balance: bool
    units: tuple[Unit, ...]
    scopes: tuple[Literal["head"], ...]
    provenance: tuple[Literal["procedural", "dp", "no_dp", "unknown"], ...]
    account: str = DEFAULT_ACCOUNT
    filter: Literal[Auto, FilterKind] = "auto"
    aggregation: tuple[Aggregation, ...] = ("plain", "masks")
    most_noise_shares: int = 1
    weights: tuple[str, ...] = ("wheel", "none")
    extensions: tuple[str, ...] = ()
    public_account: bool = False
    allow_plans: bool = True

    def __post_init__(self) -> None:
        if not self.max_epsilon > 0:
            raise InvalidSetting(f"max_epsilon={self.max_epsilon} must be above 0; check the site's policy")
        if not 0 < self.delta < 1:
            raise InvalidSetting(f"delta={self.delta} must be in (0, 1); check the site's policy")
        for name in ("min_patients", "max_images_per_patient", "public_patients", "public_images", "most_noise_shares"):
            if not 1 <= getattr(self, name) <= MOST_COUNT:
                raise InvalidSetting(f"{name}={getattr(self, name)} must be from 1 to {MOST_COUNT}; check the site's policy")
        check_name(self.account, setting="account")


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """Everything that makes a site: its cohort, its share of it, its policy and its folders.

    Attributes:
      site: name of the site.
      data: where its cohort comes from.
      share: how a simulation splits the cohort; one site and everything for a real hospital.
      index: which share is this site's, from 0.
      policy: its rules.
      folder: private folder of the site: log and prepared runs.
      ledger: path of its ledger.
      cache: folder of its feature cache.
      threads: CPU threads; 0 leaves it to PyTorch.
    """

    site: str
    data: DataSettings
    share: Partition
    index: int
    policy: SitePolicy
    folder: str
    ledger: str
    cache: str
    threads: int

    def write(self, path: Path) -> Path:
        """Write the file, readable by its owner only."""
        return write_private(path, json.dumps(json.loads(canonical_json(self)), indent=2) + "\n")


def read_site_file(path: Path) -> SiteFile:
    """Read and check a site file, JSON or TOML by its suffix.

    In TOML, keys that may be null are simply absent, paths are relative to the file's folder, and a table `network`, which is
    for the site's command line, is passed over.

    Raises:
      DataError: If it cannot be read.
      InvalidSetting: If a key is missing, unknown or out of its range.
    """
    if path.suffix == ".toml":
        values = _from_toml(read_toml(path), path.resolve().parent)
    else:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"site file {path} cannot be read ({type(error).__name__}); check the path and that it is JSON"
            ) from error
    if isinstance(values, dict) and isinstance(values.get("policy"), dict):
        values["policy"] = {**DEFAULTS, **values["policy"]}
    if isinstance(values, dict) and isinstance(values.get("data"), dict):
        values["data"] = {**DATA_DEFAULTS, **values["data"]}
    return build(SiteFile, values, path="")


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
      DataError: If it cannot be read; the message says where it breaks.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"site file {path} cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"site file {path} is not TOML ({error}); check that line") from error


def _from_toml(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same as JSON would have it: null for what is absent and may be, no network, absolute paths."""
    values = {name: value for name, value in values.items() if name != "network"}
    for name in ("folder", "ledger", "cache"):
        if isinstance(values.get(name), str):
            values[name] = _absolute(values[name], folder)
    data = values.get("data")
    if isinstance(data, dict):
        absent = {name: None for name, hint in get_type_hints(DataSettings).items() if type(None) in get_args(hint)}
        data = {**absent, **data}
        if isinstance(data["root"], str):
            data["root"] = _absolute(data["root"], folder)
        values["data"] = data
    return values


def _absolute(path: str, folder: Path) -> str:
    return str(folder / Path(path).expanduser())


def check_declaration(declaration: Declaration, policy: SitePolicy, *, public: bool) -> None:
    """Hold a run against the site's policy.

    Args:
      declaration: what the server asks for.
      policy: the site's rules.
      public: whether the site's cohort is declared public.

    Raises:
      PolicyRefused: If anything is not allowed; the text is for the site's own log.
    """
    complaints = []
    if declaration.unit not in policy.units:
        complaints.append(f"unit={declaration.unit} is not among {policy.units}")
    if declaration.model.scope not in policy.scopes:
        complaints.append(f"scope={declaration.model.scope} is not among {policy.scopes}")
    if declaration.synthesis_provenance not in policy.provenance:
        complaints.append(f"a synthetic set of provenance {declaration.synthesis_provenance} is not among {policy.provenance}")
    if policy.public_patients < policy.min_patients:
        complaints.append(f"public_patients={policy.public_patients} is below min_patients={policy.min_patients}")
    if (weights := declaration.model.weights_file or declaration.model.weights) not in policy.weights:
        # Before it is looked for: whether a file is there, or how long a hub takes, is nobody's business.
        complaints.append(f"network weights from {weights} are not among {policy.weights}")
    if policy.max_epsilon == float("inf") and not public:
        complaints.append("max_epsilon is inf and the cohort is not declared public")
    if declaration.delta > policy.delta:
        complaints.append(f"delta={declaration.delta} is above the policy's {policy.delta}")
    if declaration.noise_seed is not None and not public:
        complaints.append("noise_seed is set and the cohort is not declared public")
    if declaration.noise == "float" and not public:
        # Noise in floating point has gaps that a strong adversary can read (arXiv:2112.05307).
        complaints.append("noise=float is asked for and the cohort is not declared public; privacy.noise=secure is needed")
    if declaration.target_epsilon == float("inf") and not public:
        complaints.append("no noise is asked for and the cohort is not declared public")
    if declaration.aggregation not in policy.aggregation:
        complaints.append(f"aggregation={declaration.aggregation} is not among {policy.aggregation}")
    if declaration.noise_shares > policy.most_noise_shares:
        complaints.append(f"the noise is divided among {declaration.noise_shares} sites, above {policy.most_noise_shares}")
    complaints += _extension_complaints(declaration, policy)
    if complaints:
        raise PolicyRefused("the site's policy refuses the run: " + "; ".join(complaints))


def _extension_complaints(declaration: Declaration, policy: SitePolicy) -> list[str]:
    """What a run needs of other distributions and the site does not allow or have; nothing is imported to find out."""
    needed = [
        (kind, extensions, name)
        for kind, extensions, name in (
            ("mechanism", MECHANISMS, declaration.mechanism),
            ("accountant", ACCOUNTANTS, declaration.accountant),
        )
        if name not in extensions.built_in
    ]
    # What timm knows needs no extension, and whether a name is timm's cannot be said without importing it.
    needed += [("backbone", BACKBONES, name) for name in declaration.model.backbone if BACKBONES.extends(name)]
    complaints = []
    for kind, extensions, name in needed:
        if f"{kind}:{name}" not in policy.extensions:
            complaints.append(f"the {kind} {name!r} of another distribution is not among extensions={list(policy.extensions)}")
        elif not extensions.extends(name):
            complaints.append(f"the {kind} {name!r} is not installed here: no distribution has that name in {extensions.group}")
    return complaints
