"""Slurm on one machine, for tests."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

NUM_CPUS = 4  # whatever the machine has
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

# Times are in seconds. cred_expire is also the delay before a requeued job may start again; below 5 it means 120.
# preempt_send_user_signal: the steps of a preempted job get the signal of sbatch --signal at least GraceTime before the
# job ends. KillWait is the time from SIGTERM to SIGKILL. There is no accounting, so sacct fails.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={num_cpus} RealMemory=1000000
PartitionName=low Nodes={host} PriorityTier=1 GraceTime=5 Default=YES
PartitionName=high Nodes={host} PriorityTier=2
"""


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll `condition` until it is true; raise TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still waiting after {seconds} seconds")
        time.sleep(0.1)


class Cluster:
    """Slurm with one node, while it runs.

    Attributes:
        variables: The environment variables for sbatch and the like.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}

    def output(self, *command: str) -> str:
        environment = os.environ | self.variables
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon, which ends with the cluster."""
        log = self.stack.enter_context((self.folder / f"{command[0]}.out").open("a"))
        environment = os.environ | self.variables
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
        return process

    def start_node(self) -> None:
        self.node = self.start("slurmd", "-D")
        wait_until(lambda: self.output("sinfo", "--noheader", "--partition=low", "--format=%T") == "idle")

    def lose_node(self) -> None:
        """Kill the node's daemon and all of its jobs, as when a machine loses power, and start the node again."""
        daemons, jobs = {psutil.Process(self.node.pid)}, set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                if environment.get("SLURM_CONF") == self.variables["SLURM_CONF"] and "SLURM_JOB_ID" in environment:
                    jobs.add(process)
                    daemons |= {parent for parent in process.parents() if parent.name() == "slurmstepd"}
        for process in [*daemons, *jobs]:  # in this order, or a daemon would report that a job was killed
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.node.wait()
        name = self.output("sinfo", "--noheader", "--partition=low", "--format=%n")
        self.output("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")  # or Slurm waits for minutes
        self.start_node()


@contextmanager
def slurm_cluster(folder: Path, signals_first: bool = True) -> Iterator[Cluster]:
    """Run Slurm with one node of 4 CPUs, with all of its files in `folder`.

    If `signals_first`, preempted jobs first get the signal of `sbatch --signal`; otherwise SIGTERM, Slurm's default.

    Jobs in the partition `high` preempt those in `low`, the default, which are requeued. Skips the test unless Slurm
    and MUNGE are installed and the user is root.
    """
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("needs root, which slurmd runs as")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    with socket.socket() as first, socket.socket() as second:
        first.bind(("", 0))
        second.bind(("", 0))
        controller_port, node_port = first.getsockname()[1], second.getsockname()[1]
    configuration = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        controller_port=controller_port,
        node_port=node_port,
        folder=folder,
        num_cpus=NUM_CPUS,
    )
    if not signals_first:
        configuration = configuration.replace("SlurmctldParameters=preempt_send_user_signal\n", "")
    (folder / "slurm.conf").write_text(configuration)
    with ExitStack() as stack:
        cluster = Cluster(folder, stack)
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        # --force, because the folders of tests are closed to other users
        cluster.start(
            "munged", "--foreground", "--force", *(f"--{name}={folder}/munge.{end}" for name, end in files.items())
        )
        try:
            wait_until((folder / "munge.socket").exists)
            cluster.start("slurmctld", "-D")
            cluster.start_node()
        except TimeoutError:  # such as in a container that forbids what the daemons need
            logs = " | ".join(path.read_text().strip()[-300:] for path in sorted(folder.glob("*.out")))
            pytest.skip(f"Slurm does not start on this machine: {logs}")
        try:
            yield cluster
        finally:
            cluster.output("scancel", "--user=root")
            wait_until(lambda: not cluster.output("squeue", "--noheader"))
