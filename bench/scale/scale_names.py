"""The names of sections, conditions, subjects and quantities in docs/scale.csv."""

from __future__ import annotations

# Sections. Those of COUNTS do not depend on how busy the machine is.
OPERATIONS, SOCKETS, ACCEPTANCE, WORKERS = "operations", "sockets", "acceptance", "workers"
COUNTS = (OPERATIONS, SOCKETS)

# Of OPERATIONS: what a job, a step that a client follows, and a frame cost the store; and a worker without jobs.
JOB, STEP, FRAME, IDLE_WORKER = "job", "step", "frame", "idle worker, second"
STORE = "store"
COMMANDS, ROUND_TRIPS, BYTES_IN, BYTES_OUT = "commands", "round trips", "bytes received", "bytes sent"
CPU = "CPU, µs"
MEMORY = "memory, bytes"
OPERATION_QUANTITIES = (COMMANDS, ROUND_TRIPS, BYTES_IN, BYTES_OUT, CPU)

FRONT_END = "front end"
BYTES_PER_SOCKET = "memory of a socket, bytes"

MEDIAN, P99, FRONT_END_CPU = "median, ms", "p99, ms", "CPU of a request, ms"
JOBS_PER_SECOND, STORE_SHARE = "jobs/s", "CPU of the store, cores"


def waiting(jobs: int) -> str:
    """The condition of an acceptance."""
    return f"{jobs} waiting jobs"


def workers(count: int) -> str:
    """The condition of a load of so many workers."""
    return "1 worker" if count == 1 else f"{count} workers"


def listeners(count: int) -> str:
    """The condition of so many sockets."""
    return f"{count} sockets"
