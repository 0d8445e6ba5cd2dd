"""A real SLURM on this machine, from Debian's packages, for as long as the tests of this folder last."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ("slurm-wlm", "slurm-client", "munge")
SETTINGS = Path("/etc/slurm")
PATIENCE_S = 200
RUN_TIMEOUT_S = 1500
CPUS = 2
# what the tests counted, printed at the end
FIGURES: dict[str, Any] = {}


def _workflow_fixtures() -> Any:
    """The fixtures of ``tests/workflow``: the tiny study and the way to run it locally."""
    spec = importlib.util.spec_from_file_location("histomri_workflow_fixtures", ROOT / "tests" / "workflow" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_fixtures = _workflow_fixtures()
Outcome = _fixtures.Outcome
tiny, workflow, finished, fresh = _fixtures.tiny, _fixtures.workflow, _fixtures.finished, _fixtures.fresh


# ---------------------------------------------------------------- the cluster


def said(*command: str) -> str:
    """What a command prints; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.strip()


def _why_not() -> str:
    """Why there can be no cluster of the tests' own here, or nothing."""
    if os.geteuid() != 0:
        return "a SLURM of the tests' own needs root"
    if (SETTINGS / "slurm.conf").exists():
        return f"this machine belongs to a cluster already ({SETTINGS}/slurm.conf is there)"
    if shutil.which("slurmctld") and shutil.which("munged"):
        return ""
    if not shutil.which("apt-get"):
        return "SLURM is not installed, and there is no apt-get to install it with"
    quietly = {"capture_output": True, "check": False, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "timeout": 300}
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES]
    if subprocess.run(install, **quietly).returncode:  # type: ignore[call-overload]
        subprocess.run(["apt-get", "update", "-qq"], **quietly)  # type: ignore[call-overload]
        if subprocess.run(install, **quietly).returncode:  # type: ignore[call-overload]
            return f"apt-get cannot install {' '.join(PACKAGES)} here"
    return ""


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _slurm_conf(folder: Path) -> str:
    host, (ctld, node) = socket.gethostname().split(".")[0], _free_ports(2)
    memory_mb = int(psutil.virtual_memory().total / 2**20 * 0.9)
    return f"""
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={node}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=86400
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} Sockets=1 CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory={memory_mb}
PartitionName=debug Nodes={host} Default=YES MaxTime=600 DefMemPerCPU=500 State=UP
"""


@dataclass
class Slurm:
    """The cluster: what it says of its jobs, and what can be done to them."""

    folder: Path
    host: str
    figures: dict[str, Any] = field(default_factory=lambda: FIGURES)

    def jobs(self) -> dict[str, tuple[str, str]]:
        """All jobs, ended ones too: id -> (state, comment)."""
        lines = said("squeue", "--noheader", "--states=all", "--format=%i|%T|%k").splitlines()
        return {i: (state, comment) for i, state, comment in (line.split("|", 2) for line in lines)}

    def active(self) -> dict[str, tuple[str, str]]:
        """The jobs that wait, run or are about to end."""
        return {i: j for i, j in self.jobs().items() if j[0] in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING")}

    def node(self, **changes: str) -> None:
        """Tell the controller something of the node."""
        words = [f"{k}={v}" for k, v in changes.items()]
        subprocess.run(["scontrol", "update", f"nodename={self.host}", *words], check=True, timeout=60)

    def resume(self) -> None:
        """Have the node back; one that is back by itself takes no such order."""
        self.wait_for(self._is_back, "node")

    def _is_back(self) -> bool:
        if said("sinfo", "--noheader", "--format=%T") in ("idle", "mixed", "allocated", "completing"):
            return True
        said("scontrol", "update", f"nodename={self.host}", "state=resume")
        return False

    @staticmethod
    def script(job: str) -> str:
        """The batch script of a job."""
        return said("scontrol", "write", "batch_script", job, "-")

    @staticmethod
    def hold(job: str) -> None:
        """Keep a job in the queue."""
        subprocess.run(["scontrol", "hold", job], check=True, timeout=60)

    @staticmethod
    def submit(script: str, log: Path, variables: Mapping[str, str], folder: Path) -> str:
        """Submit a script as it stands; returns the job's id."""
        words = ["sbatch", "--parsable", "--ntasks=1", "--cpus-per-task=1", "--mem=2000", f"--output={log}", f"--chdir={folder}"]
        env = {**os.environ, **variables}
        done = subprocess.run(words, input=script, env=env, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    @staticmethod
    def wait_for(
        what: Callable[[], Any], saying: str, run: subprocess.Popen[bytes] | None = None, patience_s: float = PATIENCE_S
    ) -> Any:
        """Poll until ``what`` is true while ``run`` lasts."""
        end = time.monotonic() + patience_s
        while not (found := what()):
            assert run is None or run.poll() is None, f"the run ended, and there was no {saying}"
            assert time.monotonic() < end, f"within {patience_s:.0f} s there was no {saying}"
            time.sleep(0.1)
        return found

    def clear(self) -> None:
        """End whatever a test left on it, and have the node back."""
        self.resume()
        subprocess.run(["scancel", "--user=root"], check=False, timeout=60)
        self.wait_for(lambda: not self.active(), "end of the jobs that were cancelled")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of one node, which takes all down with it at the end."""
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Slurm(folder, socket.gethostname().split(".")[0])
    with ExitStack() as stack:
        _start_munge(stack, folder)
        _start_slurm(stack, folder)
        yield cluster
        cluster.clear()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures, where there was a cluster."""
    for name, value in FIGURES.items():
        terminalreporter.write_line(f"cluster: {name}: {value}")


def _start_munge(stack: ExitStack, folder: Path) -> None:
    if said("munge", "-n"):
        return
    for name, mode in (("run", 0o755), ("log", 0o700), ("lib", 0o700)):
        path = Path("/run/munge") if name == "run" else Path("/var") / name / "munge"
        path.mkdir(parents=True, exist_ok=True)
        shutil.chown(path, "munge", "munge")
        path.chmod(mode)
    _daemon(stack, folder / "munged.out", "munged", "--foreground", "--force", user="munge", group="munge")
    Slurm.wait_for(lambda: said("munge", "-n"), "munge")


def _start_slurm(stack: ExitStack, folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "slurm.conf").write_text(_slurm_conf(folder))
    SETTINGS.mkdir(exist_ok=True)
    link = SETTINGS / "slurm.conf"
    link.symlink_to(folder / "slurm.conf")
    stack.callback(link.unlink)
    _daemon(stack, folder / "slurmctld.out", "slurmctld", "-D", "-c")
    _daemon(stack, folder / "slurmd.out", "slurmd", "-D")
    Slurm.wait_for(lambda: said("sinfo", "--noheader", "--format=%T") == "idle", "idle node")


def _daemon(stack: ExitStack, log: Path, *command: str, **as_whom: str) -> None:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **as_whom)  # type: ignore[call-overload]
    stack.callback(_end, process)


def _hear_interrupts() -> None:
    """A shell that starts tests in the background has them, and what they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    if process.poll() is None:
        process.kill()
        process.wait()


# ---------------------------------------------------------------- runs on it


class ClusterRuns:
    """``histomri run --workflow-profile slurm``, with what a site adds."""

    def __init__(self, folder: Path):
        site = {
            "default-resources": {"slurm_partition": "debug"},
            # the node has no more, for a job or a group of jobs
            "cores": CPUS,
            # a small cluster that answers at once
            "latency-wait": 10,
        }
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(site))
        self.site = folder

    def command(self, config: Path, *arguments: str) -> list[str]:
        """The command line that the README gives; of the profile only the pace of asking is another."""
        pace = ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "1"]
        start = [sys.executable, "-m", "histomri", "run", str(config), "--workflow-profile", "slurm"]
        return [*start, "--profile", str(self.site), *arguments, *pace]

    def start(self, config: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start in a process group of its own, everything said going to ``log``."""
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}
        with log.open("wb") as file:
            return subprocess.Popen(
                self.command(config, *arguments), env=surroundings, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=_hear_interrupts,
            )  # fmt: skip

    def run(self, config: Path, log: Path, *arguments: str) -> Any:
        """Run to the end."""
        process = self.start(config, log, *arguments)
        try:
            status = process.wait(RUN_TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return Outcome(status, log.read_text())

    @staticmethod
    def outcome(status: int, log: Path) -> Any:
        """What a started run said."""
        return Outcome(status, log.read_text())


@pytest.fixture(scope="session")
def make_runs(slurm: Slurm) -> type[ClusterRuns]:
    """Makes the way to run studies on the cluster, given a folder for what the site adds."""
    return ClusterRuns


@pytest.fixture
def cluster_runs(slurm: Slurm, make_runs: type[ClusterRuns], tmp_path: Path) -> Iterator[ClusterRuns]:
    """The way to run a study on the cluster; nothing is left on it afterwards."""
    yield make_runs(tmp_path / "site")
    slurm.clear()
