"""Imported by the server that forks loading processes and by no other module, because importing has effects.

It gives each process one thread, in every library. It also keeps the signals that stop or requeue a job from
ending the server: some schedulers send them to every process of the job.
"""

from __future__ import annotations

import os
import signal

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HPC_ISL_IO_THREADS")


def _set(disposition: signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, disposition)


os.environ.update(dict.fromkeys(THREADS, "1"))
_set(signal.SIG_IGN)
os.register_at_fork(after_in_child=lambda: _set(signal.SIG_DFL))

import scipy.ndimage  # noqa: E402, F401  once here rather than once in each process

import hpc_isl.learning.training.batches  # noqa: E402, F401
