"""The settings of a test cluster, and the configuration files that Slurm reads."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

WRITER = "# Written by slurm/testcluster/testcluster.py; its `stop` removes this file.\n"
_LONGEST_SOCKET = len("/spool.node99/node99_4294967295.4294967295")


@dataclass(frozen=True)
class Settings:
    """The options with which a cluster was started."""

    nodes: int
    cpus: int
    memory: int
    """MB per node"""
    accounting: bool
    lines: tuple[str, ...]
    """of slurm.conf, that replace or add"""
    site_file: str

    @classmethod
    def of(cls, folder: Path) -> Settings | None:
        """Returns those of the cluster in the folder; None: there is none yet."""
        text = _read(folder / "settings.json")
        if not text:
            return None
        values = json.loads(text)
        return cls(**{**values, "lines": tuple(values["lines"])})

    def write(self, folder: Path) -> None:
        (folder / "settings.json").write_text(json.dumps(asdict(self)))

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]


def too_long(folder: Path) -> bool:
    """Returns whether its sockets would have longer names than the 107 bytes that Linux allows."""
    return len(bytes(folder)) + _LONGEST_SOCKET > 107


def configure(folder: Path, settings: Settings) -> None:
    """Writes all that the daemons read."""
    controller, database, accounting, *nodes = free_ports(3 + settings.nodes)
    password = secrets.token_hex(16)
    write_secret(folder / "munge.key", os.urandom(128))
    write_secret(folder / "slurmdbd.conf", _slurmdbd(folder, accounting, database, password).encode())
    write_secret(folder / "mariadb.sql", _grants(password).encode())
    (folder / "mariadb.cnf").write_text(_mariadb(folder, database))
    lines = _slurm(folder, settings, controller, accounting) + _nodes(settings, nodes)
    (folder / "slurm.conf").write_text("\n".join(replaced(lines, settings.lines)) + "\n")


def free_ports(count: int) -> list[int]:
    """Returns different free ports: all are held open until the last is chosen."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def write_secret(path: Path, content: bytes) -> None:
    """Writes a file that nobody else can open, not even for a moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def replaced(lines: list[str], by: tuple[str, ...]) -> list[str]:
    """Returns the lines, with those of the same key replaced and the others added."""
    kept = {_key(line): line for line in lines} | {_key(line): line for line in by}
    return list(kept.values())


def site(folder: Path) -> str:
    """Returns the content of the site file."""
    conf = json.dumps(str(folder / "slurm.conf"))
    return (
        f"{WRITER}executor: slurm\nslurm_conf: {conf}\n"
        "partition: main\ncpus: 1\nmemory: 1G\ntime: 30min\n"
    )  # fmt: skip


def written_by_us(site_file: Path, folder: Path | None = None) -> bool:
    """Returns whether a site file is a test cluster's: of any, or of the one in the folder."""
    text = _read(site_file)
    return text == site(folder) if folder else text.startswith(WRITER)


def _user() -> str:
    # Not the one of the environment, which may be that of the caller's sudo or su.
    return pwd.getpwuid(os.getuid()).pw_name


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _key(line: str) -> str:
    """Returns the key of a line; of partitions and nodes, which are several, `PartitionName=main`."""
    first = line.split()[0]
    return first.lower() if first.startswith(("PartitionName=", "NodeName=")) else line.split("=")[0].lower()


def _slurm(folder: Path, settings: Settings, port: int, accounting_port: int) -> list[str]:
    user = _user()
    host = socket.gethostname().split(".")[0]
    return [
        "ClusterName=testcluster",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={port}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        # How long a requeued job waits before it can start again; Slurm's default is 120 s.
        f"AuthInfo=socket={folder}/munge.socket,cred_expire=30",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool.%n",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd.%n.log",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd.%n.pid",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        f"DefMemPerCPU={settings.memory // settings.cpus}",
        "MpiDefault=none",
        "SwitchType=switch/none",
        "SlurmdParameters=config_overrides",
        "MailProg=/bin/true",
        "JobRequeue=1",
        "ReturnToService=2",
        "InactiveLimit=0",
        "KillWait=10",
        "SlurmdTimeout=300",
        "MinJobAge=300",
        # Each job gets its turn at once; large clusters look every minute.
        "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=2",
        *_accounting(folder, accounting_port, settings.accounting),
    ]


def _accounting(folder: Path, port: int, wanted: bool) -> list[str]:
    if not wanted:
        return ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        # The default socket of munge would be asked otherwise, although it is called a password.
        f"AccountingStoragePass={folder}/munge.socket",
        f"AccountingStoragePort={port}",
    ]


def _nodes(settings: Settings, ports: list[int]) -> list[str]:
    """Returns nodes whose names nothing resolves: Slurm gets the address of each."""
    size = f"CPUs={settings.cpus} RealMemory={settings.memory}"
    return [
        *(
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {size}"
            for name, port in zip(settings.names, ports, strict=True)
        ),
        "PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 PriorityTier=1",
        "PartitionName=short Nodes=ALL MaxTime=00:10:00 PriorityTier=10",
    ]


def _slurmdbd(folder: Path, port: int, database_port: int, password: str) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={_user()}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""


def _grants(password: str) -> str:
    """Returns one statement a line, as MariaDB's bootstrap reads them."""
    return f"""\
CREATE DATABASE slurm_acct_db;
FLUSH PRIVILEGES;
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
"""


def _mariadb(folder: Path, port: int) -> str:
    """Returns a small configuration without protection against power cuts: it lives as long as a test."""
    return f"""\
[mariadbd]
user={_user()}
datadir={folder}/database
tmpdir={folder}
socket={folder}/mariadb.socket
pid-file={folder}/mariadbd.pid
bind-address=127.0.0.1
port={port}
skip-name-resolve
innodb-buffer-pool-size=32M
innodb-log-file-size=16M
innodb-flush-method=nosync
innodb-flush-log-at-trx-commit=0
innodb-lock-wait-timeout=900
"""
