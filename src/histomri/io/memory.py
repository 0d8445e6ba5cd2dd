"""How much memory this process took."""

from __future__ import annotations

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory_mb() -> float:
    """The most memory (resident, MB) that this process has had so far.

    Linux tells it for the program alone; ``getrusage`` begins with what the process had that started it.
    """
    if STATUS.is_file():
        text = STATUS.read_text(encoding="ascii", errors="ignore")
        if "VmHWM:" in text:
            return int(text.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
