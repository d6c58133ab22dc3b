"""A Slurm of one's own on the loopback: two nodes, each with a GPU that only Slurm believes in.

Needs root and Debian's slurmctld, slurmd, slurm-client, munge and rsync. The daemons read
/etc/slurm/slurm.conf, as Snakemake's plugin hides another place from ``srun``; so it must be free,
and is a link while the cluster runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "rsync")
CONFIGURED = Path("/etc/slurm")
NODES = ("node1", "node2")
PATIENCE = 60.0  # seconds for a daemon to come up or go
CONTENT = """
ClusterName=eavatar
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=30
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[16818-16819] \
CPUs=16 RealMemory=256000 Gres=gpu:1
PartitionName=cpu Nodes=ALL Default=YES
PartitionName=gpu Nodes=ALL
"""  # more CPUs and memory than there are


def missing() -> str | None:
    """Why a cluster cannot be set up here, or None."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not on the path"
    if os.geteuid() != 0:
        return "only root may start Slurm's daemons"
    return f"{CONFIGURED}/slurm.conf is there" if (CONFIGURED / "slurm.conf").exists() else None


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Until a condition holds.

    Raises:
        TimeoutError: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.5)


def call(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, check=True, text=True, capture_output=True).stdout


class Cluster:
    """The daemons, with all of their files in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> Cluster:
        for name in ("state", *NODES):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(CONTENT.format(folder=self.folder))
        (self.folder / "gres.conf").write_text("NodeName=node[1-2] Name=gpu File=/dev/null\n")
        for name in ("slurm.conf", "gres.conf"):
            (CONFIGURED / name).symlink_to(self.folder / name)
        places = {
            "socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid",
            "log-file": "munged.log", "seed-file": "munged.seed",
        }  # fmt: skip
        flags = [f"--{flag}={self.folder / name}" for flag, name in places.items()]
        subprocess.run(["munged", "--force", *flags], check=True)
        self.start_controller()
        for node in NODES:
            self.start_worker(node)
        wait_for(lambda: call("sinfo", "-h", "-o", "%T").split() == ["idle"], "no idle nodes")
        return self

    def __exit__(self, *error: object) -> None:
        for path in (CONFIGURED / "slurm.conf", CONFIGURED / "gres.conf"):
            path.unlink()
        for name in (*NODES, "slurmctld", "munged"):
            self.stop(name)

    def start_controller(self) -> None:
        subprocess.run(["slurmctld"], check=True)

    def start_worker(self, node: str) -> None:
        subprocess.run(["slurmd", "-N", node], check=True)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon, and wait until it has gone."""
        number_of_process = int((self.folder / f"{name}.pid").read_text())
        os.kill(number_of_process, number)
        gone = Path(f"/proc/{number_of_process}")
        wait_for(lambda: not gone.exists() or "Z (" in (gone / "status").read_text(), name)
