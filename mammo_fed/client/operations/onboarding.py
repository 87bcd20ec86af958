"""Making a site's folder: the cohort is read once, and what is to become public of it is proposed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mammo_fed.client.folder import ABOUT, NetworkSettings, SiteFolder
from mammo_fed.common.private_files import new_folder, write_private
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import limit_images_per_patient, load_pool
from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.identity.certificates import read_authority
from mammo_fed.federation.identity.keys import check_site_name, make_private_key, public_key_of
from mammo_fed.federation.identity.site_template import render_site
from mammo_fed.privacy.patient_identity import count_patients
from mammo_fed.settings import DataSettings
from mammo_fed.settings.compose import compose_settings
from mammo_fed.settings.data import Partition

__all__ = ["CohortSize", "SiteRequest", "init_site", "parse_share"]

FEWEST_PATIENTS = 10


@dataclass(frozen=True, kw_only=True)
class CohortSize:
    """What a site really has, after leaving out images beyond the largest number of a patient; for its own people only."""

    patients: int
    images: int


@dataclass(frozen=True, kw_only=True)
class SiteRequest:
    """What a hospital asks for when its folder is made.

    Attributes:
      name: of the site.
      server: HOST:PORT of the coordinator.
      ca: file with the federation's authority's certificate, or those of several.
      proxy: URL of the HTTP proxy on the way to the coordinator, without user and password; "" is none.
      max_epsilon, delta, max_images_per_patient: see client.policy.SitePolicy.
      min_patients: the same; None takes 10, or the declared number where that is smaller.
      public_patients, public_images: declared public; None takes what the cohort has.
      share: how a common cohort is split, in trials; one site for a hospital's own table.
      index: which share is the site's, from 0.
      cache: folder of features; None is one inside the site's folder.
      threads: CPU threads; 0 leaves it to PyTorch.
      overrides: `data=csv`, `data.root=TABLE.csv` and their like.
    """

    name: str
    server: str
    ca: Path
    proxy: str
    max_epsilon: float
    delta: float
    max_images_per_patient: int
    min_patients: int | None
    public_patients: int | None
    public_images: int | None
    share: Partition
    index: int
    cache: Path | None
    threads: int
    overrides: tuple[str, ...]

    def __post_init__(self) -> None:
        check_site_name(self.name, option="--name")
        if "@" in self.proxy:
            raise InvalidSetting(
                "--proxy must be given without user and password, which all users of this machine could read on the command "
                'line; write them into site.toml afterwards: proxy = "http://USER:PASSWORD@HOST:PORT"'
            )
        if not 0 <= self.index < self.share.num_sites:
            raise InvalidSetting(
                f"--share={self.index + 1}/{self.share.num_sites} must be I/N with I from 1 to N; 2/4 is the second of four"
            )
        if self.max_images_per_patient < 1:
            raise InvalidSetting(f"--max-images-per-patient={self.max_images_per_patient} must be at least 1")
        for name in ("min_patients", "public_patients", "public_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSetting(f"--{name.replace('_', '-')}={value} must be at least 1")
        other = [override for override in self.overrides if not re.match(r"data(\.[a-z_]+)?=", override)]
        if other:
            raise InvalidSetting(
                f"{other[0]} is not of the site's: it takes data=... and data.KEY=...; the rest is the server's"
            )


def parse_share(text: str) -> tuple[int, int]:
    """The place (from 0) and the number of sites in "2/4".

    Raises:
      InvalidSetting: If it is not of that form.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match:
        raise InvalidSetting(f"--share={text} must be I/N with I from 1 to N; 2/4 is the second of four")
    return int(match[1]) - 1, int(match[2])


def init_site(path: Path, request: SiteRequest) -> tuple[SiteFolder, CohortSize]:
    """Make a site's folder.

    Args:
      path: where; new or empty.
      request: what it is to be.

    Returns:
      The folder, and the size of the cohort that was read.

    Raises:
      InvalidSetting: If a value is out of its range or the folder holds something.
      DataError: If the cohort cannot be read.
    """
    authority = read_authority(request.ca)
    network = NetworkSettings(
        server=request.server, ca="ca.crt", key="keys/site.key", executor_port="auto", proxy=request.proxy
    )
    data = _data(request.overrides)
    with new_folder(path, last=ABOUT) as draft:
        for part in ("keys", "private", "ledger"):
            (draft / part).mkdir(mode=0o700)
        size = _measure(request, data, draft / "private" / "cache" if request.cache is None else request.cache.absolute())
        write_private(draft / "ca.crt", authority.pem)
        write_private(draft / network.key, make_private_key())
        public = public_key_of(draft / network.key)
        write_private(draft / "keys" / f"{request.name}.pub", public.file_content(request.name))
        write_private(draft / ABOUT, render_site(_values(request, network, data, size)).encode())
        SiteFolder.open(draft)
    return SiteFolder.open(path), size


def _data(overrides: Sequence[str]) -> DataSettings:
    """The data settings that the overrides ask for, with an absolute root."""
    data = compose_settings(overrides).settings.data
    if data.root is None:
        return data
    return DataSettings(**{**asdict(data), "root": str(Path(data.root).expanduser().absolute())})


def _measure(request: SiteRequest, data: DataSettings, cache: Path) -> CohortSize:
    pool = load_pool(data, request.share, cache=ArrayCache(cache))
    if request.index >= len(pool.rows):
        raise InvalidSetting(
            f"--share={request.index + 1}/{request.share.num_sites} is beyond the {len(pool.rows)} shares that this cohort has"
        )
    rows = limit_images_per_patient(pool.cohort, pool.rows[request.index], most=request.max_images_per_patient)
    return CohortSize(patients=count_patients(pool.cohort.patients[rows]), images=len(rows))


def _values(request: SiteRequest, network: NetworkSettings, data: DataSettings, size: CohortSize) -> dict[str, object]:
    patients = size.patients if request.public_patients is None else request.public_patients
    images = size.images if request.public_images is None else request.public_images
    if patients > images:
        raise InvalidSetting(f"--public-patients={patients} must not be above --public-images={images}: everybody has an image")
    if math.isinf(request.max_epsilon) and not data.public:
        raise InvalidSetting(
            "--max-epsilon=inf must be a number for a cohort that is not public (data.public=false); 6 is usual"
        )
    return {
        "site": request.name,
        "folder": "private",
        "ledger": "ledger",
        "cache": "private/cache" if request.cache is None else str(request.cache.absolute()),
        "threads": request.threads,
        "index": request.index,
        **asdict(network),
        "max_epsilon": request.max_epsilon,
        "delta": request.delta,
        "min_patients": min(FEWEST_PATIENTS, patients) if request.min_patients is None else request.min_patients,
        "max_images_per_patient": request.max_images_per_patient,
        "units": ("patient", "image") if data.public else ("patient",),
        "scopes": ("head",),
        "provenance": ("procedural", "dp", "no_dp", "unknown") if data.public else ("procedural", "dp", "no_dp"),
        "account": "default",
        "filter": "auto",
        "aggregation": ("plain", "masks", "shared_noise") if data.public else ("plain", "masks"),
        "most_noise_shares": request.share.num_sites if data.public else 1,
        "weights": ("wheel", "none", "timm") if data.public else ("wheel", "none"),
        "extensions": (),
        "public_patients": patients,
        "public_images": images,
        "public_class_balance": data.public,
        "public_account": data.public,
        "allow_plans": True,
        **asdict(request.share),
        **asdict(data),
    }
