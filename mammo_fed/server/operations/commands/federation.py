"""flower-server init, register, revoke, renew and sites: who is in the federation, and how sites know its server."""

from __future__ import annotations

import argparse

from rich.console import Console

from mammo_fed.common.command_line import print_json, say
from mammo_fed.federation.identity.keys import read_public_key
from mammo_fed.server.operations.folder import FederationFolder, init_folder

__all__ = ["init", "register", "renew", "revoke", "sites"]


def init(options: argparse.Namespace, console: Console) -> int:
    """Make the federation's folder, and say what is next; the exit code."""
    folder = init_folder(
        options.folder,
        name=options.name,
        hosts=options.host,
        port=options.port,
        bind=options.bind,
        max_connections_per_address=options.max_connections_per_address,
        days=options.days,
        authority_days=options.ca_days,
    )
    if options.json:
        print_json({"folder": str(folder.path), "federation": folder.about.name, "address": folder.about.address})
        return 0
    say(
        console,
        f"{folder.path} is ready; sites reach it as {folder.about.address}.",
        "Next:",
        f"  1. give every hospital a copy of {folder.path / 'for-sites'}: ca.crt, an example site.toml, and README.txt",
        f"  2. flower-server register {folder.path} NAME.pub      for the key that each of them sends",
        f"  3. flower-server listen {folder.path}    lets sites check their connection before the first run",
        f"  4. flower-server run {folder.path} data=...",
        f"{folder.authority_key} signs servers of this federation and is needed by renew only: it may be kept elsewhere.",
    )
    return 0


def register(options: argparse.Namespace, console: Console) -> int:
    """Let a site come in; the exit code."""
    folder, key = FederationFolder.open(options.folder), read_public_key(options.key)
    name = options.name or options.key.stem
    changed = folder.registry.register(name, key, replace=options.replace, max_images=options.max_images)
    limit = next(site.max_images for site in folder.registry.read() if site.name == name)
    if options.json:
        print_json({"site": name, "fingerprint": key.fingerprint, "changed": changed, "max_images": limit})
        return 0
    said = "is registered" if changed else "was registered already, with this key"
    said += "" if limit is None else f", for at most {limit} images"
    say(console, f"{name} {said}: {key.fingerprint}; compare it with the site by another way than the file came")
    return 0


def revoke(options: argparse.Namespace, console: Console) -> int:
    """Let a site come in no more; the exit code."""
    key = FederationFolder.open(options.folder).registry.revoke(options.name)
    if options.json:
        print_json({"site": options.name, "fingerprint": key.fingerprint})
    else:
        say(console, f"{options.name} is revoked, and so is its key {key.fingerprint} for ever; a new key can be registered")
    return 0


def renew(options: argparse.Namespace, console: Console) -> int:
    """Make a new server certificate; the exit code."""
    folder = FederationFolder.open(options.folder).renew(hosts=options.host, days=options.days, new_key=options.new_key)
    certificate = folder.certificate()
    if options.json:
        print_json({"hosts": certificate.hosts, "valid_until": certificate.valid_until.isoformat()})
    else:
        names = ", ".join(certificate.hosts)
        say(console, f"the server's certificate is valid until {certificate.valid_until:%Y-%m-%d} for {names}")
        say(console, "a server that runs shows it after its next start; sites keep their ca.crt")
    return 0


def sites(options: argparse.Namespace, console: Console) -> int:
    """List the registered sites; the exit code."""
    found = FederationFolder.open(options.folder).registry.read()
    if options.json:
        print_json([{"site": site.name, "fingerprint": site.key.fingerprint, "max_images": site.max_images} for site in found])
        return 0
    say(Console(), *(f"{site.name:<24} {site.key.fingerprint}{_limit_text(site.max_images)}" for site in found))
    if not found:
        say(console, "no site is registered; flower-server register FOLDER NAME.pub")
    return 0


def _limit_text(most: int | None) -> str:
    return "" if most is None else f"  at most {most} images"
