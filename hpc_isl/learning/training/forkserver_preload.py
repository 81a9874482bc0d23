"""Imported by the server that loading processes are forked from, and by nobody else: it has effects.

One thread for each process, whatever library; and the signals that stop or requeue a job, which
some schedulers send to every process of it, do not end the server under its children.
"""

from __future__ import annotations

import os
import signal

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HPC_ISL_IO_THREADS")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def _set(disposition: signal.Handlers) -> None:
    for each in SIGNALS:
        signal.signal(each, disposition)


os.environ.update(dict.fromkeys(THREADS, "1"))
_set(signal.SIG_IGN)
os.register_at_fork(after_in_child=lambda: _set(signal.SIG_DFL))

import scipy.ndimage  # noqa: E402, F401  once here rather than once in each process

import hpc_isl.learning.training.batches  # noqa: E402, F401
