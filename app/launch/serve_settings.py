"""What `denoised serve` starts, and `denoised doctor` checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from denoised.jobs.log import LogFormat


@dataclass(frozen=True)
class ServeSettings:
    """The options of `denoised serve`.

    redis_url: an external Redis; None = start a Valkey in data_dir.
    worker_arguments: passed to `denoised worker`.
    trust_network: passed to `denoised api`.
    requires_key: whether the API requires a key.
    models: folders, and names on a hub, served in addition to the bundled models; downloaded and checked before
        anything starts.
    devices: one worker on each; see `devices.find_devices`. None = one worker.
    precision: passed to `denoised worker` too; decides which weights are downloaded.
    log_format: of this process and of all that it starts.
    results_url: where pictures, frames and resume points lie; None = in Redis.
    """

    host: str
    port: int
    data_dir: Path
    redis_url: str | None
    worker_arguments: Sequence[str] = ()
    trust_network: bool = False
    requires_key: bool = False
    models: Sequence[str] = ()
    precision: str = "float32"
    devices: str | None = None
    log_format: LogFormat = "auto"
    results_url: str | None = None
