"""mammo-fed data phantom: phantom patients as an archive of DICOM files, to try an ingestion on."""

from __future__ import annotations

import argparse
import shlex
from typing import Final

from rich.console import Console

from mammo_fed.common.command_line import print_json, say
from mammo_fed.data.cohort import concatenate
from mammo_fed.data.dicom.phantom_archive.tree import PhantomTree, write_phantom_tree
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE
from mammo_fed.errors import InvalidSetting

__all__ = ["phantom_command"]

EXTERNAL: Final = ("bcdr", "cmmd")
UNLABELLED: Final = ("inbreast", "vindr_mammo")


def phantom_command(options: argparse.Namespace, console: Console) -> int:
    """Write the archive; the exit code.

    Raises:
      InvalidSetting: If the folder is not empty or cannot be written, or an option is out of its range.
    """
    if options.images < 1:
        raise InvalidSetting(f"--images={options.images} must be at least 1")
    parts = [
        phantom_cohort(
            name=f"phantom-{split}",
            num_images=count,
            style=EXTERNAL_STYLE,
            d_prime=2.4,
            image_size=options.size,
            seed=options.seed,
            split=split,
        )
        for split, count in (("train", options.images), ("test", max(8, options.images // 2)))
    ]
    tree = PhantomTree(
        form=options.form, encoding=options.encoding, depth=options.depth, rows=options.rows, columns=options.columns
    )
    root = options.root.expanduser()
    try:
        drawn = write_phantom_tree(root, concatenate(parts, name="phantom"), tree=tree)
    except OSError as error:
        raise InvalidSetting(
            f"ARCHIVE={root} cannot be written ({error.strerror}); free disk space, or choose a place that you may write to"
        ) from error
    if options.json:
        print_json({"archive": str(root.resolve()), "mammograms": len(drawn)})
    else:
        say(console, f"{len(drawn)} mammograms of {len({one.patient for one in drawn})} phantom patients: {root.resolve()}")
        # These sources are sets for external tests; without it no run would train on them.
        split = " --split train" if options.form in EXTERNAL else ""
        say(console, f"then: mammo-fed data ingest {shlex.quote(str(root))} COHORT --source {options.form} --public{split}")
        if options.form in UNLABELLED:
            say(console, "its patches have no labels: they are of use for pretraining only")
    return 0
