"""A real server and many sites on one machine: time of a round, and the server's memory for each further site.

Sites are threads of one process, each with a key, a ledger and a connection of its own over TLS; the server's processes are the
real ones. Prints the memory of the SuperLink and the server's app with few and with many sites, and their difference a site.

    python benchmarks/bench_sites.py [--few 4] [--many 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    iterate_object_tree,
    pull_objects,
    push_objects,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "deploy"))
from real_federation import RealFederation, real_federation

from mammo_fed.client.rounds.app import app
from mammo_fed.federation.flwr_internals.messages import quiet

SITE = ("data=phantom", "data.image_size=32", "data.images_train=1600", "data.images_test=640", "data.images_external=24")
RUN = (
    *SITE,
    "model=efficientnet_lite0",
    "model.input_size=32",
    "model.flips=none",
    "model.components=20",
    "synthesis.count=48",
)
# One at a time: what a message belongs to is global in Flower's client.
ANSWERING = threading.Lock()


def serve_site(federation: RealFederation, name: str, stop: threading.Event) -> None:
    """One site: what a SuperNode and its executor do, in a thread."""
    folder = federation.site(name)
    key = load_ssh_private_key((folder / "keys" / "site.key").read_bytes(), None)
    address, ca = f"127.0.0.1:{federation.port}", str(folder / "ca.crt")
    with http_request_response(address, False, Path(ca).read_bytes(), (key, key.public_key())) as connection:
        node, receive, send, _, _, pull_object, push_object, confirm = connection
        while not stop.is_set():
            found = receive()
            if found is None:
                stop.wait(1.0)
                continue
            message, tree = found
            run = message.metadata.run_id
            contents = pull_objects(
                [part.object_id for part in iterate_object_tree(tree)], lambda part, run=run: pull_object(run, part)
            )
            whole = inflate_object_from_contents(tree.object_id, contents)
            whole.metadata.__dict__["_message_id"] = tree.object_id
            confirm(run, tree.object_id)
            context = Context(
                run_id=run,
                node_id=node,
                node_config={"site-file": str(folder / "site.toml")},
                state=RecordDict(),
                run_config={},
            )
            with ANSWERING:
                TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node
                reply = app(whole, context)
                reply.metadata.__dict__["_message_id"] = reply.object_id
            with no_object_id_recompute():
                wanted, session = send(reply, get_object_tree(reply), 0.1)
                push_objects(
                    get_all_nested_objects(reply),
                    lambda part, content, run=run, session=session: push_object(run, session, part, content),
                    object_ids_to_push=wanted,
                )


def resident(pids: list[int]) -> float:
    """Memory of processes in MiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    return total / 1024


def measure(root: Path, cache: Path, sites: int, rounds: int) -> dict[str, float]:
    """Run a federation and return seconds and memory."""
    with real_federation(root, num_sites=sites, cache=cache, data=SITE) as federation:
        stop = threading.Event()
        for name in federation.sites:
            # Few patients are at each of many sites.
            file = federation.site(name) / "site.toml"
            file.write_text(file.read_text().replace("min_patients = 10", "min_patients = 1"))
        federation.start_server(*RUN, f"federation.rounds={rounds}")
        federation.wait_for("may come in", seconds=60)
        time.sleep(3)
        threads = [threading.Thread(target=serve_site, args=(federation, name, stop), daemon=True) for name in federation.sites]
        for thread in threads:
            thread.start()
        peak_link = peak_app = 0.0
        while federation.server is not None and federation.server.poll() is None:
            peak_link = max(peak_link, resident(federation.processes("flwr_internals.guard")))
            peak_app = max(peak_app, resident(federation.processes("flwr-serverapp")))
            time.sleep(0.5)
        stop.set()
        if federation.server is None or federation.server.returncode:
            raise SystemExit(federation.tail())
        record = json.loads((federation.run_folder / "record.json").read_text())
        answered = [site["rounds"] for site in record["privacy"]["sites"]]
        return {
            "sites": len(answered),
            "rounds": min(answered),
            "seconds a round": record["federation"]["seconds_per_round"],
            "SuperLink MiB": peak_link,
            "server app MiB": peak_app,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--many", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root, found = Path(folder), []
        for sites in (options.few, options.many):
            place = root / str(sites)
            place.mkdir()
            found.append(measure(place, root / "cache", sites, options.rounds))
            print("  ".join(f"{name}: {value:.4g}" for name, value in found[-1].items()), flush=True)
    few, many = found
    more = many["sites"] - few["sites"]
    for part in ("SuperLink MiB", "server app MiB"):
        print(f"{part} for each further site: {(many[part] - few[part]) / more:.2f}")
    ratio = many["seconds a round"] / few["seconds a round"]
    print(f"a round with {many['sites']:.0f} sites takes {ratio:.1f} times one with {few['sites']:.0f}")
    # Threads of sites that still ask a server that is gone must not keep this process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
