"""What a worker would find on this machine: `python -m worker.checkup`, for `denoised doctor`.

One JSON object a line: {"check", "state": "ok" | "warning" | "problem", "message", "advice"}.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from denoised.model.backends.native.compiler import cache_folder, compilers
from denoised.model.backends.native.network import NativeUNet
from denoised.model.checkpoints.card_file import CARD_FILE
from denoised.model.errors import KernelError, ModelError
from denoised.model.networks.unet import UNet
from denoised.model.serving.loading import load_model
from denoised.worker.model_loading import bundled

SLOW_CAPABILITIES = ("DEFAULT", "NO AVX")
GIB = 1024**3


def finding(check: str, state: str, message: str, advice: str | None = None) -> dict[str, str | None]:
    return {"check": check, "state": state, "message": message, "advice": advice}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one finding after another."""
    parser = ArgumentParser(prog="python -m worker.checkup")
    parser.add_argument("--device", default=os.environ.get("DENOISED_DEVICE", "cpu"))
    parser.add_argument("--model", type=Path, action="append")
    given = parser.parse_args(arguments)
    named = [Path(item.strip()) for item in os.environ.get("DENOISED_MODELS", "").split(",") if item.strip()]
    for found in examine(given.device, [*bundled(), *(given.model or named)]):
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def examine(device: str, folders: Sequence[Path]) -> Iterator[dict[str, str | None]]:
    """Device, processor, compiler, cache; then each model folder, loaded as a worker loads it."""
    yield _device(device)
    yield _cuda(device)
    yield _processor()
    yield _threads()
    yield _compiler()
    yield _cache()
    yield from (_model(folder) for folder in folders)


def _device(device: str) -> dict[str, str | None]:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        return finding("device", "problem", f"{device!r} cannot be used here ({reason})", "DENOISED_DEVICE=cpu")
    return finding("device", "ok", f"{device}, torch {torch.__version__}")


def _cuda(device: str) -> dict[str, str | None]:
    if not torch.cuda.is_available():
        return finding("cuda", "ok", "none here")
    count = torch.cuda.device_count()
    names = ", ".join(
        f"{torch.cuda.get_device_name(k)} ({torch.cuda.mem_get_info(k)[0] / GIB:.0f} GiB free)" for k in range(count)
    )
    if device.startswith("cuda"):
        return finding("cuda", "ok", names)
    return finding("cuda", "warning", f"{names}, but the device is {device}", "DENOISED_DEVICE=cuda uses it")


def _processor() -> dict[str, str | None]:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in SLOW_CAPABILITIES:
        return finding(
            "processor", "warning", f"{capability}: no vector instructions are used", "a newer CPU, or a GPU"
        )
    return finding("processor", "ok", capability)


def _threads() -> dict[str, str | None]:
    threads = int(os.environ.get("DENOISED_THREADS", "0")) or torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = f"{threads} of the network, {cores} cores for this process"
    if threads > cores:
        return finding("threads", "warning", f"{said}: they wait for each other", f"DENOISED_THREADS={cores}")
    return finding("threads", "ok", said)


def _compiler() -> dict[str, str | None]:
    there = next(compilers(), None)
    if there is None:
        advice = "install gcc (Debian, Ubuntu: apt install gcc), or name another with CC"
        return finding("compiler", "warning", "no C compiler: networks run on slower kernels", advice)
    return finding("compiler", "ok", " ".join(there))


def _cache() -> dict[str, str | None]:
    folder = cache_folder()
    if folder is None:
        said = "the cache folder cannot be used: kernels are compiled at every start, some seconds a network"
        advice = "let ~/.cache/denoised, or the denoised folder of XDG_CACHE_HOME, be yours and written by you alone"
        return finding("kernel cache", "warning", said, advice)
    return finding("kernel cache", "ok", str(folder))


def _model(folder: Path) -> dict[str, str | None]:
    check = f"model {folder.resolve().name}"
    try:
        model = load_model(folder)
    except ModelError as error:
        return finding(check, "problem", str(error), "mend that file, or leave the folder out")
    card = model.card
    said = f"{card.width}×{card.height}×{card.channels}, {len(card.labels)} classes, {card.default.sampler}"
    said += "" if (folder / CARD_FILE).exists() else f", no {CARD_FILE}"
    assert isinstance(model.unet, UNet)
    try:
        NativeUNet(model.unet, model.shape)
    except KernelError as error:
        return finding(check, "warning", f"{said}; {error}", "it is served all the same, by slower kernels")
    return finding(check, "ok", f"{said}, compiled kernels")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
