"""How long the door takes to answer `--help`, in seconds and as a multiple of starting Python alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

BARE = ["-c", "pass"]
CALLS = {
    "--help": ["-m", "hpc_isl.submit", "--help"],
    "pretrain --help": ["-m", "hpc_isl.submit", "pretrain", "--help"],
    "status": ["-m", "hpc_isl.submit", "status"],
}


def seconds(words: list[str]) -> float:
    """Wall time of one Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    for name, words in CALLS.items():
        seconds(words)  # compiles, as an installation does
        pairs = [(seconds(words), seconds(BARE)) for _ in range(9)]
        took = statistics.median(ours for ours, _ in pairs)
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        print(f"{name:<16} {took:.2f} s   {ratio:.1f} × python -c pass")


if __name__ == "__main__":
    main()
