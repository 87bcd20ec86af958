"""`flower-server run`: a guarded SuperLink, its executor and a run, kept alive until the run has ended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mammo_fed.common.damaged_database import damage, log_tells_of_database, put_aside
from mammo_fed.common.interruption import stop_signals
from mammo_fed.common.isolation import python_command
from mammo_fed.common.json_lines import read_object
from mammo_fed.common.logs import LOG_NAME
from mammo_fed.common.private_files import hex_secret, write_private
from mammo_fed.common.supervision import ManagedProcess, Supervisor
from mammo_fed.errors import PrivacyRefused, RunFailed
from mammo_fed.federation.flwr_internals.control import CONTROL_ERRORS, Control, bundle
from mammo_fed.federation.flwr_internals.environment import flower_environment
from mammo_fed.federation.flwr_internals.health import healthy
from mammo_fed.federation.flwr_internals.link_database import forget_runs
from mammo_fed.federation.identity.clocks import CLOCKS_NAME
from mammo_fed.reporting.console import results_table
from mammo_fed.reporting.record.record import read_record
from mammo_fed.server.operations.events import EventReader
from mammo_fed.server.operations.folder import STATE_NAME, FederationFolder
from mammo_fed.server.operations.node_authorizer import NodeAuthorizer
from mammo_fed.server.operations.run_folder import (
    ATTENDANCE_NAME,
    EVENTS_NAME,
    LINK_VARIABLE,
    MOST_IMAGES_NAME,
    OUTCOME_NAME,
    PID_NAME,
    PROGRESS_NAME,
    ROSTER_NAME,
    RUN_VARIABLE,
    SETTINGS_NAME,
)
from mammo_fed.server.operations.sockets import bind_own, bind_public
from mammo_fed.server.operations.watch.attendance import AttendanceWatch
from mammo_fed.server.operations.watch.presence import PRESENCE_NAME, Presence
from mammo_fed.settings.compose import Composed

__all__ = ["INTERRUPTED", "Server", "serve", "stopping"]

INTERRUPTED: Final = 130
LINK: Final = "SuperLink"
# Of the executor, and of the coordinator's side; both as long as the processes live.
SECRETS: Final = ("superexec.secret", "control.secret")
TICK_SECONDS: Final = 0.2
PASSING_ERRORS: Final[tuple[type[Exception], ...]] = (*CONTROL_ERRORS, OSError)
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
ASK_SECONDS: Final = 1.0
# Starts the server's app for a run.
EXECUTOR_NAME: Final = "executor"
END_SECONDS: Final = 3.0
# Starts of the server's app that may end without a round in between.
FRUITLESS_STARTS: Final = 8
DECLARATION_ROUND: Final = -1
# The modules are named as words: they are run, never imported, in processes of their own.
GUARD_MODULE: Final = "mammo_fed.federation.flwr_internals.guard"
# What callers made the SuperLink take is given back to the system when they have gone, and not kept for the next.
RETURN_MEMORY: Final = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "1048576"}
EXECUTOR_MODULE: Final = "mammo_fed.federation.flwr_internals.superexec"


def serve(
    folder: FederationFolder, composed: Composed, *, run_folder: Path, resume: bool, insecure: bool, console: Console
) -> int:
    """Run a federation between real machines until it has ended, and return the exit code.

    Every process is started again if it dies; the run goes on after its last finished round.

    Args:
      folder: the federation's; held by the caller.
      composed: settings of the run.
      run_folder: where the run lies; exists.
      resume: go on with the run that lies there.
      insecure: neither encryption nor keys.
      console: shows what happens.
    """
    server = Server(folder, run_folder=run_folder, insecure=insecure, console=console)
    with stopping() as stopped:
        server.listen()
        while not stopped:
            try:
                server.prepare(composed, resume=resume)
                code = server.run(stopped)
                if code == 0:
                    # Nobody resumes this run, and a run that is resumed begins anew at the SuperLink.
                    for database in folder.state.glob("link*.db"):
                        forget_runs(database)
                return code
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                server.wait_for_room()
    return INTERRUPTED


class Server:
    """The processes of a federation's server and one run; see `serve`."""

    def __init__(self, folder: FederationFolder, *, run_folder: Path, insecure: bool, console: Console) -> None:
        self._folder, self._run_folder, self._insecure, self._console = folder, run_folder.resolve(), insecure, console
        self._ca = None if insecure else folder.authority_certificate
        self._run: int | None = None
        self._claim_lost = False
        self._due, self._asked = 0.0, 0.0
        self._starts, self._progress_seen = 0, dict[str, Any]()
        self._link_is_new, self._log_seen = False, 0

    @property
    def _local(self) -> str:
        """HOST:PORT by which the server's own processes reach it, wherever it listens for others."""
        host, port = self._own.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def listen(self) -> None:
        """Take the sockets; they are kept while the process that answers is started again."""
        self._own = bind_own()
        self._public = bind_public(self._folder.about.bind, self._folder.about.port)

    def stop_listening(self) -> None:
        """Give the sockets back, for another server of the folder."""
        for taken in (self._own, self._public):
            taken.close()

    def prepare(self, composed: Composed, *, resume: bool) -> None:
        """Write what the processes need."""
        write_private(self._run_folder / SETTINGS_NAME, composed.settings.to_json().encode())
        for name in (OUTCOME_NAME, PID_NAME):
            (self._run_folder / name).unlink(missing_ok=True)
        self._events = EventReader(self._run_folder / EVENTS_NAME, seen=resume)
        self._attendance = AttendanceWatch(self._run_folder / ATTENDANCE_NAME)
        self.note_state()
        self.prepare_processes()

    def note_state(self) -> None:
        """Say in the federation's folder which run is served."""
        about = {"run": str(self._run_folder), "address": self._folder.about.address, "pid": os.getpid()}
        write_private(self._folder.state / STATE_NAME, json.dumps(about).encode())

    def prepare_processes(self) -> None:
        """Write what the processes need whatever the run."""
        self._mend_link()
        self._secrets = {name: self._secret(name) for name in SECRETS}
        self._control = Control(self._local, ca=self._ca, secret=self._secrets[SECRETS[1]])
        self._authorizer = NodeAuthorizer(
            self._folder.registry,
            self._control,
            self._run_folder / ROSTER_NAME,
            self._run_folder / MOST_IMAGES_NAME,
            presence=Presence(self._folder.state / PRESENCE_NAME),
            clocks=self._folder.state / CLOCKS_NAME,
            say=self._say,
        )
        self._supervisor = Supervisor(self._processes(), on_death=self._report_death)

    def wait_for_room(self) -> None:
        """Say that the disk is full, and give somebody a moment to make room."""
        self._note(f"no room on the disk of {self._run_folder} or {self._folder.path}; make room, it is tried again")
        time.sleep(ASK_SECONDS)

    def run(self, stopped: list[int]) -> int:
        """Keep all alive until the run has ended or somebody asks to stop."""
        self._say(f"the server listens at {self._folder.about.bind}:{self._folder.about.port}; {self._purpose()}")
        try:
            self._wait_for_link(stopped)
            while not stopped:
                self._supervisor.tick()
                try:
                    code = self._step()
                except PASSING_ERRORS as error:
                    # A SuperLink that restarts, and a disk without room, are tried again.
                    self._due = max(self._due, time.monotonic() + ASK_SECONDS)
                    self._note(f"the SuperLink or the disk does not answer ({type(error).__name__}); tried again")
                    self._mend_running_link()
                    code = None
                self._show_events()
                if code is not None:
                    return code
                time.sleep(TICK_SECONDS)
            return self._interrupted()
        finally:
            self._supervisor.end(seconds=END_SECONDS)

    def _purpose(self) -> str:
        return f"run folder {self._run_folder}"

    def _step(self) -> int | None:
        if (outcome := self._outcome()) is not None:
            return self._finish(outcome)
        if not self._supervisor.processes[0].running:
            # Its sockets are kept: whoever asks now waits until it has been started again, and this process starts it.
            return None
        now = time.monotonic()
        if not self._insecure:
            self._authorizer.check()
        if now < self._due:
            return None
        if self._link_is_new and self._run is not None:
            # It knows nothing of the run, whose app would ask it for ever.
            self._begin_again(self._run)
            return None
        self._link_is_new = False
        if self._run is None:
            self._start()
        elif now >= self._asked:
            self._asked = now + ASK_SECONDS
            self._mend_running_link()
            if self._has_died(self._run):
                self._begin_again(self._run)
        return None

    def _start(self) -> None:
        for run in self._control.unfinished():
            self._control.stop(run)
        progress = self._progress()
        self._starts = 0 if progress != self._progress_seen else self._starts + 1
        self._progress_seen = progress
        if self._starts >= FRUITLESS_STARTS:
            raise RunFailed(
                f"the server's app ended {FRUITLESS_STARTS} times without finishing a round; look at "
                f"{self._run_folder / LOG_NAME} and {self._folder.state / 'superexec.log'}"
            )
        (self._run_folder / PID_NAME).unlink(missing_ok=True)
        self._claim_lost = False
        self._run = self._control.start(bundle())
        self._asked = time.monotonic() + ASK_SECONDS

    def _has_died(self, run: int) -> bool:
        pid = self._pid()
        if pid is not None and not _alive(pid):
            return True
        if pid is None and self._claim_lost:
            # The SuperLink would wait for minutes for the app that the dead executor was about to start.
            return True
        return self._control.status(run).state == "finished"

    def _begin_again(self, run: int) -> None:
        # Its last act is to write the outcome: it may have ended well between two looks.
        time.sleep(TICK_SECONDS)
        if self._outcome() is not None:
            return
        pid = self._pid()
        if pid is not None and _alive(pid):
            os.kill(pid, signal.SIGKILL)
        self._say("the server's app has died; the run goes on after its last finished round")
        self._run, self._due = None, time.monotonic() + ASK_SECONDS
        with contextlib.suppress(*CONTROL_ERRORS):
            self._control.stop(run)

    def _finish(self, outcome: dict[str, Any]) -> int:
        """What is said and done once the run has ended; the exit code."""
        self._show_events()
        code = int(outcome["exit_code"])
        if code:
            self._console.print(f"error: {outcome['message']}", style="red", highlight=False, markup=False, soft_wrap=True)
            self._say(self._after_failure(code))
            return code
        Console().print(results_table(read_record(self._run_folder)))
        self._say(f"results: {self._run_folder}", f"report:  {self._run_folder / 'report.html'}")
        return 0

    def _after_failure(self, code: int) -> str:
        resume = f"flower-server run {self._folder.path} --resume"
        if code != PrivacyRefused.exit_code:
            return f"what was finished is kept: {resume}"
        reached = self._progress().get("round")
        if isinstance(reached, int) and reached > DECLARATION_ROUND:
            return f"what was finished is kept; once the sites that refused allow the rest: {resume}"
        # The same run would be refused in the same words.
        return (
            "nothing was trained, and nothing is charged; ask for less (privacy.target_epsilon) in another run. What sites "
            f"would take: flower-server plan {self._folder.path} key=value"
        )

    def _interrupted_run(self) -> None:
        if self._run is not None:
            with contextlib.suppress(*CONTROL_ERRORS):
                self._control.stop(self._run)

    def _interrupted(self) -> int:
        self._interrupted_run()
        self._say(f"stopped; finished rounds are kept: flower-server run {self._folder.path} --resume")
        return INTERRUPTED

    def _wait_for_link(self, stopped: list[int]) -> None:
        begun = time.monotonic()
        link = self._supervisor.processes[0]
        while not stopped:
            self._supervisor.tick()
            if healthy(self._local, ca=self._ca):
                return
            if link.deaths >= 3:
                raise RunFailed(f"the SuperLink does not start; look at {link.log}")
            if time.monotonic() - begun > 120:
                raise RunFailed(f"the SuperLink does not answer at {self._local}; look at {link.log}")
            time.sleep(0.05)

    def _processes(self) -> tuple[ManagedProcess, ...]:
        folder, state = self._folder, self._folder.state
        environment = flower_environment(state / "flwr")
        secret = str(state / "superexec.secret")
        tls = ["--insecure"]
        if not self._insecure:
            tls = ["--ssl-certfile", str(folder.server_certificate), "--ssl-keyfile", str(folder.server_key)]
            tls += ["--ssl-ca-certfile", str(folder.authority_certificate), "--enable-supernode-auth"]
        link = python_command(GUARD_MODULE, *tls, "--isolation", "process", "--superexec-auth-secret-file", secret)
        link += ["--host", folder.about.bind, "--port", str(folder.about.port), "--database", str(state / _database_name())]
        own = ["--insecure"] if self._insecure else ["--root-certificates", str(folder.authority_certificate)]
        executor = python_command(EXECUTOR_MODULE, *own, "--runtime-api-address", self._local)
        executor += ["--superexec-auth-secret-file", secret, "--parent-pid", str(os.getpid())]
        own_and_public = (self._own.fileno(), self._public.fileno())
        door = {"own": own_and_public[0], "public": own_and_public[1], "per_address": folder.about.max_connections_per_address}
        guarded = {
            **environment,
            **RETURN_MEMORY,
            "MAMMO_FED_CONTROL_SECRET_FILE": str(state / "control.secret"),
            "MAMMO_FED_DOOR": json.dumps(door),
        }
        return (
            ManagedProcess(
                name=LINK,
                command=link,
                log=state / "superlink.log",
                environment=guarded,
                inherited=own_and_public,
            ),
            ManagedProcess(
                name=EXECUTOR_NAME,
                command=executor,
                log=state / "superexec.log",
                environment={**environment, RUN_VARIABLE: str(self._run_folder), LINK_VARIABLE: str(state / _database_name())},
            ),
        )

    def _outcome(self) -> dict[str, Any] | None:
        found = read_object(self._run_folder / OUTCOME_NAME)
        # Of a damaged one nobody can say how the run ended: its app is seen to be gone, and the run goes on.
        return found if isinstance(found.get("exit_code"), int) and isinstance(found.get("message"), str) else None

    def _progress(self) -> dict[str, Any]:
        return read_object(self._run_folder / PROGRESS_NAME)

    def _pid(self) -> int | None:
        try:
            return int((self._run_folder / PID_NAME).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def _show_events(self) -> None:
        for event in self._events.read():
            self._say(*event.lines)
        self._say(*self._attendance.news())

    def _report_death(self, ended: ManagedProcess, wait: float) -> None:
        self._claim_lost = self._claim_lost or ended.name == EXECUTOR_NAME
        self._say(f"the {ended.name} has died; it is started again in {wait:.1f} s ({ended.log})")
        with contextlib.suppress(OSError):
            for name, secret in self._secrets.items():
                if self._secret(name) != secret:
                    # The processes that still run know this one.
                    write_private(self._folder.state / name, secret)
            if ended.name == LINK:
                self._mend_link(ended)

    def _secret(self, name: str) -> str:
        path = self._folder.state / name
        secret, damaged = hex_secret(path)
        if damaged:
            self._say(f"{path} was damaged, and is written anew")
        return secret

    def _mend_link(self, died: ManagedProcess | None = None) -> None:
        """Put the SuperLink's database aside where it is damaged; no process may use it now."""
        database = self._folder.state / _database_name()
        wrong = damage(database)
        if not wrong and died is not None and died.deaths > 1 and database.exists() and log_tells_of_database(died.log):
            wrong = "the SuperLink cannot use it"
        if wrong:
            aside = put_aside(database)
            self._link_is_new = True
            self._say(
                f"the SuperLink's database was damaged ({wrong}) and is now {aside}; a new one takes its place, and the run "
                "goes on after its last finished round"
            )

    def _mend_running_link(self) -> None:
        """End a SuperLink that lives on with a damaged database, and put that aside; looked for where its log speaks of it."""
        link = self._supervisor.processes[0]
        with contextlib.suppress(OSError):
            size = link.log.stat().st_size
            if size == self._log_seen:
                return
            self._log_seen = size
            if log_tells_of_database(link.log) and damage(self._folder.state / _database_name()):
                link.end(seconds=END_SECONDS)
                self._mend_link()

    def _note(self, line: str) -> None:
        if line != getattr(self, "_noted", ""):
            self._say(line)
        self._noted = line

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _database_name() -> str:
    """A SuperLink's database is of one release of Flower: an older one does not start on that of a newer one.

    It can be made again: keys are in the registry, finished rounds in the run's folder.
    """
    return f"link-{'.'.join(version('flwr').split('.')[:2])}.db"


@contextlib.contextmanager
def stopping() -> Iterator[list[int]]:
    """A list that is empty until somebody asks this process to stop."""
    asked: list[int] = []
    with stop_signals(asked.append):
        yield asked


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        # A process that nobody has waited for is dead too.
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
