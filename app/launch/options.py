"""Options of the server's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from denoised.command_line.options import env
from denoised.jobs.log import LogFormat

Host = Annotated[str, env("HOST", "address to listen on")]
Port = Annotated[int, env("PORT", "port to listen on", min=1, max=65535)]
TrustNetwork = Annotated[
    bool, env("TRUST_NETWORK", "listen on the network without API keys, because something else controls access")
]
RedisUrl = Annotated[str | None, typer.Option(envvar="REDIS_URL", help="URL of an external Redis or Valkey")]

LogFormatOption = Annotated[
    LogFormat, env("LOG_FORMAT", "json or text; auto: text with warnings only on a terminal, json elsewhere")
]

# Of `serve` and `doctor`.
DataDir = Annotated[
    Path | None, env("DATA_DIR", "folder for the queue and the results (default: denoised in the user's data folder)")
]
Device = Annotated[str | None, env("DEVICE", "torch device: cpu, cuda, cuda:1, mps")]
Devices = Annotated[
    str | None,
    env("DEVICES", "one worker per device, in place of --device: all or 0,1 = CUDA devices; cpu:2 = two on the CPU"),
]
Precision = Annotated[
    Literal["float32", "tf32", "bfloat16", "float16"] | None,
    env("PRECISION", "precision of the networks: tf32 and float16 on a CUDA device [default: float32]"),
]

# Of `api`.
ResultLinks = Annotated[
    int,
    env(
        "RESULT_LINKS",
        "redirect pictures to links of the bucket that are valid for so many seconds; 0 = send the pictures",
        min=0,
        max=604_800,
    ),
]
ApiKeys = Annotated[
    str, env("API_KEYS", "accepted keys, comma-separated; without keys, only programs on this machine are served")
]
ApiKeysFile = Annotated[Path | None, env("API_KEYS_FILE", "file with one key per line, as printed by `denoised key`")]
AllowedHosts = Annotated[
    str, env("ALLOWED_HOSTS", "accepted host names in addition to the local ones, comma-separated")
]
AllowedOrigins = Annotated[str, env("ALLOWED_ORIGINS", "browser origins that may call the API, comma-separated")]
MaxWait = Annotated[
    float, env("MAX_WAIT", "longest time that a client may wait for its job, in seconds", min=0.1, max=86_400)
]
MaxQueue = Annotated[int, env("MAX_QUEUE", "most jobs in the queue", min=1)]
MaxQueuePerKey = Annotated[
    int | None, env("MAX_QUEUE_PER_KEY", "most jobs in the queue per API key [default: half of --max-queue]", min=1)
]
QueueLimit = Annotated[int, env("QUEUE_LIMIT", "most network evaluations in the queue", min=1)]
QueueLimitPerKey = Annotated[
    int, env("QUEUE_LIMIT_PER_KEY", "most network evaluations in the queue per API key", min=1)
]
MaxInputBytesPerKey = Annotated[
    int, env("MAX_INPUT_BYTES_PER_KEY", "most bytes of pictures that an API key may have stored for its jobs", min=1)
]
MaxStreamsPerKey = Annotated[
    int, env("MAX_STREAMS_PER_KEY", "most event streams and waiting requests that an API key may have open", min=1)
]
WebhookHosts = Annotated[
    str, env("WEBHOOK_HOSTS", "hosts that may receive webhooks: host, host:port or http://host:port, comma-separated")
]
WebhookPrivateHosts = Annotated[
    str, env("WEBHOOK_PRIVATE_HOSTS", "the same for hosts whose addresses are private, comma-separated")
]
WebhookSecrets = Annotated[
    str, env("WEBHOOK_SECRETS", "what the secrets of webhooks are derived from, the newest first, comma-separated")
]
WebhookTimeout = Annotated[
    float, env("WEBHOOK_TIMEOUT", "time that an attempt to deliver a webhook may take, in seconds", min=0.1, max=60)
]
QueueWithoutWorker = Annotated[
    bool,
    env(
        "QUEUE_WITHOUT_WORKER",
        "accept jobs for models that were served before and have no worker now, because workers start on demand",
    ),
]
MaxAttempts = Annotated[int, env("MAX_ATTEMPTS", "attempts per job if workers are lost", min=1, max=1000)]
