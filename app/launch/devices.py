"""The devices of `denoised serve --devices`: one worker each, which sees no other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from denoised.app.launch.cores import available_cores, split_cores
from denoised.app.launch.errors import LaunchError
from denoised.command_line.service_options import TORCH_ENVIRONMENT

LIST_SECONDS = 120.0  # within which the devices are listed; importing torch takes most of it
CPU_WORKERS = re.compile(r"cpu(?::(\d{1,4}))?")
FORMS = "all, numbers of CUDA devices as in 0,1, or cpu:2"


@dataclass(frozen=True)
class WorkerDevice:
    """The device of one worker.

    name: as reports and messages call it.
    arguments: added to the worker's.
    environment: added to the worker's.
    cores: that it may use, where the platform can pin a process; None = all.
    """

    name: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] | None = None


DEFAULT_DEVICE = WorkerDevice("")  # of the only worker, as --device says


def find_devices(text: str | None) -> list[WorkerDevice]:
    """The devices that a value of --devices names; without one, the default of a single worker.

    Raises:
        LaunchError: for another form, and for a device that is not here.
    """
    if text is None:
        return [DEFAULT_DEVICE]
    items = [item.strip() for item in text.split(",")]
    if len(items) != len(set(items)):
        raise LaunchError(f"devices = {text!r:.80} names one twice: name each once")
    cpu = [match for item in items if (match := CPU_WORKERS.fullmatch(item)) is not None]
    others = [item for item in items if CPU_WORKERS.fullmatch(item) is None]
    if len(cpu) > 1 or not all(other == "all" or (other.isascii() and other.isdecimal()) for other in others):
        raise LaunchError(f"devices = {text!r:.80} cannot be read: allowed are {FORMS}")
    found = _cuda_devices(text, others) if others else []
    return found + (_cpu_devices(int(cpu[0][1] or 1)) if cpu else [])


def _cuda_devices(text: str, items: Sequence[str]) -> list[WorkerDevice]:
    present = list_cuda_devices()
    if not present:
        raise LaunchError(f"devices = {text!r:.80}, but no CUDA device is available here: use --devices cpu:1")
    indices = range(len(present)) if "all" in items else [int(item[:6]) for item in items]
    for index in indices:
        if index >= len(present):
            raise LaunchError(f"device {index} is not here: the CUDA devices are 0 to {len(present) - 1}")
    return [_cuda_device(present[index]) for index in indices]


def _cuda_device(identifier: str) -> WorkerDevice:
    """The only device that its worker sees is cuda:0 there."""
    return WorkerDevice(f"cuda:{identifier}", ("--device", "cuda"), {"CUDA_VISIBLE_DEVICES": identifier})


def list_cuda_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each device that a worker started here would see.

    Raises:
        LaunchError: if they cannot be listed.
    """
    command = [sys.executable, "-P", "-m", "denoised.worker.devices"]
    try:
        done = subprocess.run(
            command, env={**TORCH_ENVIRONMENT, **os.environ}, capture_output=True, timeout=LIST_SECONDS, check=True
        )
        return [str(each) for each in json.loads(done.stdout)]
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise LaunchError(f"the CUDA devices cannot be listed ({type(error).__name__}): run denoised doctor") from error


def _cpu_devices(count: int) -> list[WorkerDevice]:
    cores = available_cores()
    if not 1 <= count <= len(cores):
        raise LaunchError(f"devices = 'cpu:{count}': this machine has {len(cores)} cores for as many workers at most")
    shares = split_cores(cores, count)
    return [
        WorkerDevice(
            "cpu" if count == 1 else f"cpu:{k}", ("--device", "cpu", "--threads", str(len(share))), cores=share
        )
        for k, share in enumerate(shares)
    ]
