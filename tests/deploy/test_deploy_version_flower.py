"""Both supported versions of Flower: together in one federation, and one after the other in one run.

MAMMO_FED_OTHER_FLOWER names the folder of an environment with the other version; .ci/other_flower.py makes one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from real_federation import SMALL_RUN, RealFederation, real_federation

ROOT = Path(__file__).parents[2]
OTHER = os.environ.get("MAMMO_FED_OTHER_FLOWER", "")
TESTED = ("1.41.0", "1.42.0")
RUN = (*SMALL_RUN, "privacy.noise_seed=5", "federation.rounds=3", "federation.num_sites=2", "federation.min_replies=2")


def asked_for() -> Requirement:
    """What pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = [needed for needed in map(Requirement, project["dependencies"]) if needed.name == "flwr"]
    return found


def test_version_of_flower_that_is_asked_for_is_one_that_is_tested_and_no_later_one():
    assert [one for one in TESTED if not asked_for().specifier.contains(one)] == []
    assert not asked_for().specifier.contains("1.40.9")
    assert not asked_for().specifier.contains("1.43.0")


def test_version_of_flower_that_is_installed_is_the_newest_that_is_tested():
    (pinned,) = re.findall(r"(?m)^flwr==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert pinned == TESTED[-1]


def test_version_of_flower_in_the_bundle_is_what_the_package_asks_for():
    from mammo_fed.federation.flwr_internals.control import PYPROJECT

    (bundled,) = tomllib.loads(PYPROJECT)["project"]["dependencies"]
    assert Requirement(bundled).specifier == asked_for().specifier


@pytest.fixture
def other() -> str:
    """A Python with the other version of Flower."""
    if not OTHER:
        pytest.skip("MAMMO_FED_OTHER_FLOWER names no environment with another version of Flower; .ci/other_flower.py makes one")
    python = str(Path(OTHER) / "bin" / "python")
    code = "from importlib.metadata import version; print(version('flwr'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert {found, version("flwr")} == set(TESTED)
    return python


def one_round(federation: RealFederation, number: int, *, program: list[str], resume: bool) -> None:
    """Run the server until round `number` is done, then stop it."""
    federation.start_server(*(() if resume else RUN), program=program, resume=resume)
    federation.wait_for(f"round {number}/3", seconds=600)
    federation.server.send_signal(signal.SIGINT)
    assert federation.wait(300) == 130, federation.tail()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_version_of_flower_may_differ_between_sites_and_server_and_change_both_ways_in_a_run(other, tmp_path, cache, succeed):
    simulated = succeed(*RUN)
    server = [other, "-m", "mammo_fed.server.operations.cli"]
    with real_federation(tmp_path, num_sites=2, cache=cache) as federation:
        federation.start_client("site-1")
        federation.start_client("site-2", program=[other, "-m", "mammo_fed.client.operations.cli"])
        one_round(federation, 1, program=[], resume=False)
        one_round(federation, 2, program=server, resume=True)
        federation.start_server(resume=True)
        assert federation.wait(900) == 0, federation.tail()
        assert simulated.same_model(type(simulated)(0, "", "", federation.run_folder), tolerance=1e-6)
        record = federation.record
        assert record.federation.rounds == 3
        for mine, theirs in zip(record.privacy.sites, simulated.record.privacy.sites, strict=True):
            assert (mine.site, mine.epsilon, mine.refused) == (theirs.site, theirs.epsilon, False)
            # The mean network of round 0 is one more.
            assert mine.rounds == theirs.rounds == 4
