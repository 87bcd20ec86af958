"""site-client: one hospital's side of a federation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from mammo_fed.client.folder import SiteFolder
from mammo_fed.common.command_line import CommandLine, describe, print_json, say, warn
from mammo_fed.errors import InvalidSetting

__all__ = ["main"]

INIT = """
data=csv data.root=TABLE.csv is a hospital's own table (patient, image, label, optional view and split).
For trials: data=phantom or data=mammo_dp with --share 2/4 takes the second of four shares, as a simulation would.

site-client init SITE --name hospital-a --server fed.example.org:8443 --ca ca.crt --max-epsilon 6 data=csv data.root=table.csv
"""

# Where the executor of a site that does well may be: it is started when the server answers.
WELL: Final = ("running", "waiting")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 failure, 2 bad input, 3 refused for privacy, 130 interrupted)."""
    return _command_line().run(arguments)


def _command_line() -> CommandLine:
    line = CommandLine("site-client", "One hospital's side of a federation.", interrupted="interrupted")
    init = line.add("init", "make this site's folder: key pair, policy, ledger; reads the cohort once", _init)
    run = line.add("run", "take part in the federation's runs until stopped", _run)
    status = line.add("status", "what the site is doing, and whether the server answers", _status)
    check = line.add("check", "look at key, cohort, ledger, certificates and the way to the server", _check)
    public = line.add("public-key", "print the public key for the coordinator", _public_key)
    rotate = line.add("rotate-key", "make a new key pair; the old one is kept until --done", _rotate_key)
    for command in (init, run, status, check, public, rotate):
        command.add_argument("folder", type=Path, metavar="FOLDER", help="the site's folder")
    _add_init_options(init)
    run.add_argument("--insecure", action="store_true", help="no TLS, no keys: for trials on public cohorts only")
    public.add_argument("--fingerprint", action="store_true", help="its fingerprint, for the telephone")
    ends = rotate.add_mutually_exclusive_group()
    ends.add_argument("--done", action="store_true", help="the coordinator has registered the new key: throw the old one away")
    ends.add_argument("--undo", action="store_true", help="go back to the old key")
    return line


def _add_init_options(init: argparse.ArgumentParser) -> None:
    init.epilog = INIT
    init.add_argument("overrides", nargs="*", metavar="data.key=value", help="where the site's patients come from")
    init.add_argument("--name", required=True, help="of the site, known to all in the federation")
    init.add_argument("--server", required=True, metavar="HOST:PORT", help="of the coordinator")
    init.add_argument("--ca", required=True, type=Path, metavar="CA.CRT", help="the federation's authority, from for-sites/")
    init.add_argument("--max-epsilon", type=float, default=6.0, help="of all runs ever together (6)")
    init.add_argument("--delta", type=float, default=1e-4, help="at which it is meant (1e-4)")
    init.add_argument("--max-images-per-patient", type=int, default=16, metavar="N", help="further images are left out (16)")
    init.add_argument("--min-patients", type=int, metavar="N", help="take no part with fewer (10)")
    init.add_argument("--public-patients", type=int, metavar="N", help="declared public (the cohort's)")
    init.add_argument("--public-images", type=int, metavar="N", help="declared public (the cohort's)")
    init.add_argument("--share", default="1/1", metavar="I/N", help="this site's part of a common cohort, for trials")
    init.add_argument("--partition", choices=["uniform", "size", "label"], default="uniform", help="how the shares are cut")
    init.add_argument("--partition-alpha", type=float, default=1.0, metavar="X", help="skew of the shares")
    init.add_argument("--seed", type=int, default=0, help="of the shares and of the phantom")
    init.add_argument("--cache", type=Path, metavar="FOLDER", help="of features (inside the site's folder)")
    init.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (all)")


def _init(options: argparse.Namespace, console: Console) -> int:
    # Imported late: reading a cohort brings torch, and --help should not wait for it.
    from mammo_fed.client.operations.onboarding import SiteRequest, init_site, parse_share
    from mammo_fed.data.share import Share

    index, sites = parse_share(options.share)
    request = SiteRequest(
        name=options.name,
        server=options.server,
        ca=options.ca,
        max_epsilon=options.max_epsilon,
        delta=options.delta,
        max_images_per_patient=options.max_images_per_patient,
        min_patients=options.min_patients,
        public_patients=options.public_patients,
        public_images=options.public_images,
        share=Share(num_sites=sites, how=options.partition, alpha=options.partition_alpha, seed=options.seed),
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
    if policy.delta * policy.public_patients >= 1:
        warn(
            console,
            f"delta={policy.delta:g} is not below 1 / {policy.public_patients} patients: it allows to publish one of them",
        )
    if options.json:
        print_json({**_about(folder), "public_patients": policy.public_patients, "public_images": policy.public_images})
        return 0
    say(
        console,
        f"{folder.path} is ready for {folder.file.site}; the cohort has {size.patients} patients and {size.images} images.",
        f"These numbers become PUBLIC in every run: {policy.public_patients} patients, {policy.public_images} images "
        "(--public-patients, --public-images, or [policy] in site.toml).",
        f"All runs together may not take a patient past epsilon {policy.max_epsilon:g} at delta {policy.delta:g}.",
        "Next:",
        f"  1. read {folder.site_file}",
        f"  2. send {folder.public_key_file} to the coordinator, and tell the fingerprint by another way:",
        f"     {folder.public_key().fingerprint}",
        f"  3. site-client check {folder.path}",
        f"  4. site-client run {folder.path}",
    )
    return 0


def _run(options: argparse.Namespace, console: Console) -> int:
    folder = SiteFolder.open(options.folder)
    if options.insecure:
        if not folder.file.data.public:
            raise InvalidSetting(
                "--insecure must not be given for a cohort that is not public (data.public=false): anybody on the way could "
                "read and change messages; leave it out"
            )
        warn(console, "--insecure: no encryption, no proof of who the server is; for trials with public data only")
    from mammo_fed.client.operations.supervisor import serve

    with folder.hold():
        return serve(folder, insecure=options.insecure, console=console)


def _status(options: argparse.Namespace, console: Console) -> int:
    del console
    from mammo_fed.client.operations.supervisor import status

    found = status(SiteFolder.open(options.folder))
    if options.json:
        print_json(found)
    else:
        say(Console(), *describe(found))
    # What a container's health check goes by; the server may be away, for it is up during a run only.
    well = all(found.get(process) == "running" for process in ("site_client", "supernode")) and found.get("executor") in WELL
    return 0 if well else 1


def _check(options: argparse.Namespace, console: Console) -> int:
    del console
    from mammo_fed.client.operations.checks import check_site

    found = check_site(SiteFolder.open(options.folder))
    ready = all(check.ok for check in found)
    if options.json:
        print_json({"ready": ready, "checks": found})
    else:
        say(Console(), *(f"{'ok    ' if check.ok else 'FAILED'} {check.name + ':':<10} {check.message}" for check in found))
    return 0 if ready else 2


def _public_key(options: argparse.Namespace, console: Console) -> int:
    del console
    folder = SiteFolder.open(options.folder)
    key = folder.public_key()
    if options.json:
        print_json(_about(folder))
    elif options.fingerprint:
        sys.stdout.write(f"{key.fingerprint}\n")
    else:
        sys.stdout.write(key.file_content(folder.file.site).decode())
    return 0


def _rotate_key(options: argparse.Namespace, console: Console) -> int:
    folder = SiteFolder.open(options.folder)
    if options.done or options.undo:
        key = folder.end_rotation() if options.done else folder.undo_rotation()
    else:
        key = folder.rotate_key()
    if options.json:
        print_json(_about(folder))
        return 0
    if options.done or options.undo:
        say(console, f"the key in use is {key.fingerprint}; no other is kept")
        return 0
    say(
        console,
        f"the new key is {key.fingerprint}",
        f"  1. send {folder.public_key_file} to the coordinator, who gives it to flower-server register --replace",
        "  2. a site-client that runs goes on with the old key until then, and takes the new one by itself",
        f"  3. afterwards: site-client rotate-key {folder.path} --done   (or --undo to go back before)",
    )
    return 0


def _about(folder: SiteFolder) -> dict[str, str]:
    """What the coordinator may know of a site."""
    key = folder.public_key()
    return {
        "site": folder.file.site,
        "folder": str(folder.path),
        "public_key_file": str(folder.public_key_file),
        "public_key": key.line,
        "fingerprint": key.fingerprint,
    }


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
