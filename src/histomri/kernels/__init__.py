"""Arrays in, arrays out, on one tile: each kernel a readable formula, a compiled form for the CPU and, where it pays, CUDA."""

import os

# Threads that have nothing to do sleep instead of spinning: on cores that other work wants too, a spinning thread keeps the one
# that it waits for from running (a deformation of 100 pixels took 3.1 s instead of 0.03 s). Read once, when OpenMP is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
