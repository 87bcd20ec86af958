"""site-client init: the folder of a new site."""

from __future__ import annotations

import argparse

from rich.console import Console

from mammo_fed.client.operations.commands.keys import about
from mammo_fed.client.operations.onboarding import SiteRequest, init_site, parse_share
from mammo_fed.common.command_line import print_json, say, warn
from mammo_fed.settings.checks import delta_warning
from mammo_fed.settings.data import Partition

__all__ = ["init"]


def init(options: argparse.Namespace, console: Console) -> int:
    """Make the folder, and say what is next; the exit code."""
    index, sites = parse_share(options.share)
    request = SiteRequest(
        name=options.name,
        server=options.server,
        ca=options.ca,
        proxy=options.proxy,
        max_epsilon=options.max_epsilon,
        delta=options.delta,
        max_images_per_patient=options.max_images_per_patient,
        min_patients=options.min_patients,
        public_patients=options.public_patients,
        public_images=options.public_images,
        share=Partition(num_sites=sites, how=options.partition, alpha=options.partition_alpha, seed=options.seed),
        index=index,
        cache=options.cache,
        threads=options.threads,
        overrides=tuple(options.overrides),
    )
    folder, size = init_site(options.folder, request)
    policy = folder.file.policy
    if not request.overrides:
        warn(
            console,
            "no data=... was given: the site holds a made-up cohort, for trials only; a hospital gives data=cohort or "
            "data=csv, and data.root=PATH",
        )
    if said := delta_warning(delta=policy.delta, patients=policy.public_patients, name="delta"):
        warn(console, said)
    if options.json:
        print_json({**about(folder), "public_patients": policy.public_patients, "public_images": policy.public_images})
        return 0
    say(
        console,
        f"{folder.path} is ready for {folder.file.site}; the cohort has {size.patients} patients and {size.images} images.",
        f"These numbers become PUBLIC in every run: {policy.public_patients} patients, {policy.public_images} images "
        "(--public-patients, --public-images, or [policy] in site.toml).",
        f"All runs together may not take a patient past epsilon {policy.max_epsilon:g} at delta {policy.delta:g}. The first "
        "run notes that in the ledger as a promise: only site-client raise-cap can loosen it, and every later record says so.",
        *(
            ()
            if policy.public_account
            else ("What all runs cost these patients and what is left stays at the site (public_account in site.toml).",)
        ),
        "Next:",
        f"  1. read {folder.site_file}",
        f"  2. send {folder.public_key_file} to the coordinator, and tell the fingerprint by another way:",
        f"     {folder.public_key().fingerprint}",
        f"  3. site-client check {folder.path}",
        f"  4. site-client run {folder.path}",
    )
    return 0
