"""What the coordinator hands to every hospital: the authority's certificate, an example of a site's file, and the commands."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from string import Template
from typing import Final

from mammo_fed.federation.identity.certificates import parse_certificate
from mammo_fed.federation.identity.site_template import example_site

__all__ = ["write_onboarding_bundle"]

_README: Final = Template("""\
Joining the federation $name
============================

What you need: Linux, Python 3.11 or later with mammo-fed installed, outgoing TCP to $address,
and a table of your patches (columns patient, image, label; optional view and split). Nothing has to reach your hospital
from outside.

ca.crt is the federation's own authority. Its SHA-256 fingerprint, to be compared over the telephone:

  $fingerprint

1. Make your site's folder. Choose a name that may be known to all; the largest epsilon is your decision alone.

  site-client init SITE --name YOUR-NAME --server $address --ca ca.crt --max-epsilon 6 \\
      data=csv data.root=/path/to/table.csv

   It reads your table once and declares its numbers of patients and images public; --public-patients and --public-images
   override that. Where the way out is an HTTP proxy, give --proxy. Read SITE/site.toml and change what you want: no server
   can loosen it. site.toml beside this text is an example of it.

2. Send SITE/keys/YOUR-NAME.pub to the coordinator. It is a public key; nothing else leaves the folder, above all not
   SITE/keys/site.key. Tell its fingerprint over the telephone:

  site-client public-key SITE --fingerprint

3. When the coordinator has registered you, check, and start. It runs until you stop it, and takes part in every run that
   your policy allows. (Between runs the last line of the check passes while the coordinator runs flower-server listen.)

  site-client check SITE
  site-client run SITE

Keep SITE on a local disk that you trust. SITE/ledger says what your patients have spent; without it, or with a copy that is
older than the last round, the site refuses to take part. Back it up after every run, and keep FILE as secret as SITE:

  site-client backup SITE FILE
""")


def write_onboarding_bundle(folder: Path, *, name: str, address: str, authority: bytes) -> None:
    """Write the folder that every hospital gets a copy of; one that is there is replaced whole.

    Args:
      folder: where.
      name: of the federation.
      address: HOST:PORT of the server.
      authority: the authority's certificate, PEM.
    """
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    draft.mkdir()
    digits = parse_certificate(authority, name="tls/ca.crt").fingerprint.upper()
    fingerprint = ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))
    (draft / "ca.crt").write_bytes(authority)
    (draft / "site.toml").write_text(example_site(server=address), encoding="utf-8")
    text = _README.substitute(name=name, address=address, fingerprint=fingerprint)
    (draft / "README.txt").write_text(text, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    draft.replace(folder)
