"""How much memory this process took, and how much there is."""

from __future__ import annotations

import os
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")


def peak_memory_mb() -> float:
    """The most memory (resident, MB) that this process has had so far.

    Linux tells it for the program alone; ``getrusage`` begins with what the process had that started it.
    """
    if STATUS.is_file():
        text = STATUS.read_text(encoding="ascii", errors="ignore")
        if "VmHWM:" in text:
            return int(text.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def available_memory_mb() -> float:
    """Memory (MB) that could still be had without swapping, as the kernel estimates it, within this process's own limit."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    if MEMINFO.is_file():
        text = MEMINFO.read_text(encoding="ascii", errors="ignore")
        if "MemAvailable:" in text:
            free = int(text.partition("MemAvailable:")[2].split()[0]) / 1024
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else min(free, limit / 2**20)
