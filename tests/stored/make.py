"""Makes the files beside it; runs with commit 18fde13, the last one whose messages had no version (see README.md).

    python make.py EMPTY_FOLDER

Nothing of the machine that it runs on is in what it writes: sites' files, the only ones with paths, are not kept.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from client.app import app
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from mammo_fed.compose import compose_settings
from mammo_fed.data.assemble import load_pool
from mammo_fed.federation.messages import ARRAYS, CONFIG, Reply, pack_array, pack_declaration, pack_reply, task_config
from mammo_fed.federation.secure import Terms
from mammo_fed.federation.secure_messages import Answer, Question, pack_answer, pack_question
from mammo_fed.federation.task import Declaration, RoundTask
from safetensors.numpy import load_file, save_file
from server.checkpoint import CheckpointFolder
from server.rounds import Deployment
from server.run import Hooks, run_federation, share_of
from simulations.in_process import run_in_process
from simulations.launch import site_file

from mammo_fed.data.cache import ArrayCache
from mammo_fed.federation.flwr_internals.messages import become_server, stamp
from mammo_fed.privacy.events import PrivacyEvent

SETTINGS = (
    "model=efficientnet_lite0",
    "model.input_size=64",
    "model.flips=none",
    "model.components=4",
    "data.image_size=64",
    "data.images_train=40",
    "data.images_test=16",
    "data.images_external=8",
    "synthesis.count=16",
    "federation.rounds=3",
    "federation.num_sites=2",
    "federation.resend_after=60",
    "privacy.noise_seed=5",
)
EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=2.5,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=0.5,
    max_images_per_patient=16,
)


class PowerLoss(RuntimeError):
    """The server's process ends."""


def federation(work: Path) -> None:
    """Two sites whose server stops after round 1, and the same two to the end."""
    settings = compose_settings([*SETTINGS]).settings
    cache = ArrayCache(work / "cache")
    for name in ("whole", "stopped"):
        folder = work / name
        (folder / "sites").mkdir(parents=True)
        pool = load_pool(settings.data, share_of(settings), cache=cache)
        for index in range(2):
            described = site_file(settings, pool, index, folder=folder, cache=cache)
            described.write(folder / "sites" / f"site-{index + 1}.json")
        made = ServerApp()

        def stop(index: int, rounds: int, budget: object, name: str = name) -> None:
            if name == "stopped" and index == 1:
                raise PowerLoss

        @made.main()
        def main(grid: Grid, context: Context, folder: Path = folder, stop: object = stop) -> None:
            deployment = Deployment(checkpoints=CheckpointFolder(folder / "checkpoint"), roster=dict)
            run_federation(grid, settings, folder, mode="deploy", hooks=Hooks(round=stop), deployment=deployment)

        config = {"sites-folder": str(folder / "sites")}
        with suppress(PowerLoss):
            run_in_process(made, app, num_sites=2, run_config=config, workers=1, wire=True)


def keep(work: Path, target: Path) -> None:
    """What of the two runs is stored."""
    stopped, whole = work / "stopped", work / "whole"
    shutil.copytree(stopped / "checkpoint", target / "interrupted" / "checkpoint")
    for site in ("site-1", "site-2"):
        for part in ("ledger", "runs"):
            shutil.copytree(stopped / "sites" / site / part, target / "interrupted" / "sites" / site / part)
        shutil.copy(stopped / "sites" / site / "ledger-head", target / "interrupted" / "sites" / site)
    (target / "finished").mkdir()
    shutil.copy(whole / "record.json", target / "finished")
    model = load_file(whole / "model.safetensors")
    save_file({name: model[name] for name in ("head", "centre")}, target / "finished" / "model.safetensors")
    (target / "settings.txt").write_text("\n".join(SETTINGS) + "\n")


def messages(target: Path) -> None:
    """One message of every kind, as the objects that Flower carries."""
    target.mkdir()
    declaration = Declaration.from_json(json.loads(declared(target.parent))["declaration"])
    task = RoundTask(
        run_id=declaration.run_id,
        round_index=1,
        kind="train",
        learning_rate=20.0,
        weight_decay=0.0,
        optimizer="sgd",
        label_smoothing=0.0,
        proximal=0.0,
    )
    reply = Reply(
        site="site-1",
        run_id=declaration.run_id,
        round_index=1,
        task_hash="c" * 64,
        events=(EVENT,),
        epsilon=1.25,
        epsilon_account=2.5,
        budget_left=math.inf,
        reason="",
        weight=281,
        patients=146,
        arrays=np.zeros(5, np.float32),
    )
    terms = Terms(run_id=declaration.run_id, round_index=1, min_survivors=2, colluders=0)
    question = Question(stage="keys", run_id=terms.run_id, round_index=1, roster=None, survivors=())
    zeros = np.zeros(5, np.float32)
    contents = {
        "declaration": (pack_declaration(declaration, zeros), "query"),
        "task": (RecordDict({ARRAYS: pack_array(zeros), CONFIG: task_config(task, zeros[:4])}), "train"),
        "question": (pack_question(question), "query.secure"),
        "reply": (pack_reply(reply), "train"),
        "answer": (pack_answer(Answer(reason="")), "query.secure"),
    }
    become_server(1)
    for name, (content, kind) in contents.items():
        message = Message(content, 2, kind)
        stamp(message)
        parts = {key: base64.b64encode(part.deflate()).decode() for key, part in get_all_nested_objects(message).items()}
        text = json.dumps({"message": message.object_id, "objects": parts}, indent=1)
        (target / f"{name}.json").write_text(text + "\n")


def declared(target: Path) -> str:
    """The header of the stored checkpoint."""
    content = (target / "interrupted" / "checkpoint" / "state.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]["checkpoint"]


if __name__ == "__main__":
    made_in = Path(sys.argv[1])
    federation(made_in / "work")
    keep(made_in / "work", made_in / "stored")
    messages(made_in / "stored" / "messages")
