"""A site that runs, between a coordinator who sends code and listens for secrets, and its own mishaps."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from network_probe import exchange, http
from network_trial import NetworkTrial
from real_federation import SMALL_RUN

from mammo_fed.client.folder import SiteFolder
from mammo_fed.data.cache import ArrayCache
from mammo_fed.federation.flwr_internals.control import bundle
from mammo_fed.federation.protocol.messages import pack_declaration, task_config
from mammo_fed.federation.protocol.reasons import Reason
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.models.classifier import extractor_spec
from mammo_fed.models.features import Extractor
from mammo_fed.server.run import declare_run
from mammo_fed.settings.compose import compose_settings

pytestmark = pytest.mark.slow

NAME = "hospital-q"
# Parts of paths at the site; what its table is made of has such names too.
FOLDER, LEDGER, TABLE = "Praxis-Dr-Mustermann", "Verschlusssache-4711", "Diagnosen-Geburtstag-1950"
LISTENING = "0A"


def reason_in(config: dict[str, Any]) -> str:
    """The word in a round's reply, or in the answer to a stage of a masked sum."""
    if "privacy" in config:
        return str(config["privacy"].get("reason", ""))
    return json.loads(config["secure"]["json"])["reason"] or ""


@dataclasses.dataclass
class Hospital:
    """A site that runs, of a table with telling names.

    Attributes:
      trial: its server.
      table: of its patients.
      node: its number at the server.
      planted: what must not leave it.
      replies: everything that the hostile coordinator has received.
    """

    trial: NetworkTrial
    table: Any
    node: int
    planted: tuple[bytes, ...]
    replies: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.trial.federation.site(NAME)

    def ask(self, kind: str, config: dict[str, Any], arrays: Any = None) -> str:
        """The one word that the site answers; "" where it agrees."""
        found = self.trial.ask(self.node, kind, config, arrays)
        self.replies.append(found)
        if found["error"] is not None:
            return str(found["error"][1])
        return reason_in(found["config"])

    def declare(self, declaration: Declaration, payload: np.ndarray) -> str:
        content = pack_declaration(declaration, payload)
        return self.ask("query", dict(content.config_records["config"]), payload)

    def processes(self) -> list[int]:
        return [
            *self.trial.federation.processes("mammo_fed.client.operations.executor"),
            *self.trial.federation.processes("flwr_internals.supernode"),
        ]


@pytest.fixture(scope="module")
def hospital(trial, client, table, phantom, make_table, cache) -> Iterator[Hospital]:
    """The site, up and running, and a hostile bundle at the server that asks it things."""
    federation = trial.federation
    hidden = federation.root / "elsewhere" / FOLDER
    own = make_table(hidden / TABLE, [("train", site) for site in phantom.sites])
    folder = federation.site(NAME)
    server = ("--server", f"127.0.0.1:{federation.port}", "--ca", trial.ca)
    code, _, err = client("init", folder, "--name", NAME, *server, "--cache", cache, "data=csv", f"data.root={own.path}")
    assert code == 0, err
    file = folder / "site.toml"
    text = re.sub(r"(?m)^ledger = .*$", f"ledger = {json.dumps(str(hidden / LEDGER))}", file.read_text())
    file.write_text(text)
    key = (folder / "keys" / "site.key").read_bytes().splitlines()[2]
    words = [FOLDER, LEDGER, TABLE, "Erika", "mammogram-", *own.images[:3], *own.patients[:3]]
    planted = (*(word.encode() for word in words), key)
    trial.folder.registry.register(NAME, SiteFolder.open(folder).public_key(), replace=False)
    # It begins with an image that is missing.
    image = hidden / TABLE / own.images[0]
    aside = image.rename(hidden / "aside.png")
    trial.start_hostile_bundle()
    federation.start_client(NAME)
    roster = federation.run_folder / "roster.json"
    trial.until(lambda: NAME in roster.read_text(), "the site is on the roster", seconds=60)
    node = next(int(number) for number, name in json.loads(roster.read_text()).items() if name == NAME)
    trial.until(lambda: any(n.identifier == node and n.online for n in trial.nodes()), "it comes", seconds=90)
    found = Hospital(trial, own, node, planted)
    assert found.ask("train", {"task": "x"}, np.zeros(3, np.float32)) == "internal"
    aside.rename(image)
    with (own.path).open("a") as rows:
        rows.write("Erika-Kaputt,png/none.png,perhaps,train\n")
    assert found.ask("query", {"declaration": "{"}, np.zeros(3, np.float32)) == "internal"
    own.path.write_text(own.path.read_text().replace("Erika-Kaputt,png/none.png,perhaps,train\n", ""))
    yield found
    (trial.asks / "stop").touch()


@pytest.fixture(scope="module")
def run(trial, cache) -> tuple[Declaration, np.ndarray]:
    """A run that a site of a private table may accept, and what comes with it."""
    settings = compose_settings([*SMALL_RUN]).settings
    store = ArrayCache(cache)
    extractor = Extractor(extractor_spec(settings.model, seed=0), cache=store)
    start = make_public_start(settings, extractor, cache=store)
    return declare_run(settings, extractor, start, run_id="curious"), start.payload.flatten()


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Addresses on which processes listen, IPv4 and IPv6, as (hexadecimal address, port)."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                sockets.add(link.readlink().name)
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and f"socket:[{words[9]}]" in sockets:
                address, port = words[1].split(":")
                found.add((address, int(port, 16)))
    return found


def test_network_a_site_listens_on_its_own_loopback_only_and_asks_for_its_secret(hospital, trial):
    found = listening(hospital.processes())
    # 127.0.0.1, as Linux writes it.
    assert {address for address, _ in found} == {"0100007F"}
    ((_, port),) = found
    acquire = http("POST", "/v1/runtime/acquire-task", host="x", headers={"Content-Type": "application/protobuf"})
    (outer,) = trial.outside([acquire], port=port, tls=False)
    assert outer["error"] == "ConnectionRefusedError"
    for path in ("acquire-task", "pull-task-input", "pull-object", "push-task-output"):
        request = http("POST", f"/v1/runtime/{path}", host="x", headers={"Content-Type": "application/protobuf"})
        assert exchange(("127.0.0.1", port), request, ca=None)["status"] in (401, 403), path


@pytest.mark.parametrize("kind", ["query.evil", "train.evil", "evaluate"])
def test_network_a_question_that_nobody_installed_has_one_answer(hospital, kind):
    assert hospital.ask(kind, {"code": "import os"}) == "internal"


def test_network_a_task_that_makes_no_sense_has_one_answer(hospital):
    for config in ({}, {"task": "{}", "centre": b""}, {"task": "[" * 50_000, "centre": b""}, {"declaration": "\ud7ff"}):
        for kind in ("train", "query", "query.secure"):
            assert hospital.ask(kind, config, np.zeros(3, np.float32)) in {"internal", "task"}


def test_network_a_run_against_the_policy_is_refused_before_anything_is_computed(hospital, run):
    declaration, payload = run
    # The payload is nonsense as well: whoever looked at it first would say something else.
    for changed in ({"unit": "image"}, {"noise_seed": 7}, {"delta": 0.01}):
        asked = dataclasses.replace(declaration, run_id="forbidden", weights_sha256="00", **changed)
        assert hospital.declare(asked, payload[:7]) == "policy"
    assert not (hospital.folder / "private" / "runs" / "forbidden").exists()


def test_network_other_weights_and_too_much_epsilon_have_their_one_word(hospital, run):
    declaration, payload = run
    assert hospital.declare(dataclasses.replace(declaration, run_id="other", weights_sha256="00"), payload) == "weights"
    assert hospital.declare(dataclasses.replace(declaration, run_id="much", target_epsilon=60.0), payload) == "budget"


def test_network_a_damaged_ledger_has_its_one_word(hospital, run):
    declaration, payload = run
    assert hospital.declare(declaration, payload) == ""
    task = RoundTask(
        run_id=declaration.run_id,
        round_index=0,
        kind="mean",
        learning_rate=1.0,
        weight_decay=0.0,
        optimizer="sgd",
        label_smoothing=0.0,
        proximal=0.0,
    )
    zeros = np.zeros(declaration.dims, np.float32)
    ledger = hospital.trial.federation.root / "elsewhere" / FOLDER / LEDGER
    kept = {path: path.read_bytes() for path in ledger.rglob("*") if path.is_file() and path.stat().st_size}
    for path, content in kept.items():
        path.write_bytes(content[: len(content) // 2] + b"Erika" + content[len(content) // 2 + 5 :])
    assert hospital.ask("train", dict(task_config(task, zeros)), zeros) == "ledger"
    for path, content in kept.items():
        path.write_bytes(content)
    assert hospital.ask("train", dict(task_config(task, zeros)), zeros) == ""


def test_network_code_in_a_bundle_runs_at_no_site_and_installs_nothing(hospital, trial):
    installed = {path.name for path in Path(np.__file__).parents[1].iterdir()}
    assert hospital.ask("query", {"declaration": "{}"}) in {"internal", "task"}
    # The bundle is alive at the server, whose coordinator sent it, and the site has it too.
    assert (trial.asks / "coordinator").exists()
    assert not list(trial.asks.glob("ran-*"))
    assert {path.name for path in Path(np.__file__).parents[1].iterdir()} == installed
    assert not any("surely" in name for name in installed)
    unpacked = [
        path for path in (hospital.folder / "private").rglob("*") if path.name in {"evil", "coordinator.py", "torch.py"}
    ]
    assert unpacked == []


def test_network_nothing_of_a_site_that_fails_in_every_way_reaches_the_server(hospital, trial):
    assert len(hospital.replies) > 10
    words = {reply["error"][1] if reply["error"] else reason_in(reply["config"]) for reply in hospital.replies}
    assert words <= {"", *get_args(Reason)}
    places = [trial.federation.fed, trial.federation.run_folder, trial.federation.root / "server.out", trial.asks]
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    assert any(path.name.startswith("link-") for path in files)
    for path in files:
        content = path.read_bytes()
        assert [word for word in hospital.planted if word in content] == [], path
    captured = b"".join(reply["raw"] for reply in hospital.replies)
    assert NAME.encode() in captured
    assert [word for word in hospital.planted if word in captured] == []
    # The site's own people can read what happened.
    log = (hospital.folder / "private" / "executor.log").read_bytes()
    for word in (FOLDER, TABLE, "policy refuses", "label"):
        assert word.encode() in log


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_network_the_bundle_of_a_run_tells_nothing_but_the_version(tmp_path):
    there = zipfile.ZipFile(io.BytesIO(bundle()))
    assert not [name for name in there.namelist() if name.endswith((".py", ".pth", ".so"))]
    told = b"".join(there.read(name) for name in there.namelist()).decode()
    for word in (str(Path.home()), str(Path.cwd()), "hydra", "seed", "epsilon", "127.0.0.1"):
        assert word not in told
    # Another process, in another folder, of another user's name, makes the same bytes.
    code = "import sys; from mammo_fed.federation.flwr_internals.control import bundle; sys.stdout.buffer.write(bundle())"
    other = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True, env={"USER": "other"})
    assert other.stdout == bundle()
