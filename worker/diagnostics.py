"""Checks what a worker would find on this machine: `python -m denoised.worker.diagnostics`, for `denoised doctor`.

It prints one JSON object per line: {"check", "state": "ok" | "warning" | "problem", "message", "advice"}.
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
from denoised.model.checkpoints.card_file import CARD_FILE
from denoised.model.errors import ModelError
from denoised.model.serving.loading import load_for_serving
from denoised.worker.model_loading import bundled

SLOW_CAPABILITIES = ("DEFAULT", "NO AVX")  # names that PyTorch gives to CPUs without vector instructions
GIB = 1024**3


def finding(check: str, state: str, message: str, advice: str | None = None) -> dict[str, str | None]:
    """One line of the output. advice: what to do about it."""
    return {"check": check, "state": state, "message": message, "advice": advice}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the findings, each as soon as it is known."""
    parser = ArgumentParser(prog="python -m denoised.worker.diagnostics")
    parser.add_argument("--device", default=os.environ.get("DENOISED_DEVICE", "cpu"))
    parser.add_argument("--model", type=Path, action="append")
    options = parser.parse_args(arguments)
    named = [Path(item.strip()) for item in os.environ.get("DENOISED_MODELS", "").split(",") if item.strip()]
    for found in examine(options.device, [*bundled(), *(options.model or named)]):
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def examine(device: str, folders: Sequence[Path]) -> Iterator[dict[str, str | None]]:
    """Check the device, processor, compiler and cache; then load each model folder as a worker does."""
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
        return finding("cuda", "ok", "not available")
    count = torch.cuda.device_count()
    names = ", ".join(
        f"{torch.cuda.get_device_name(k)} ({torch.cuda.mem_get_info(k)[0] / GIB:.0f} GiB free)" for k in range(count)
    )
    if device.startswith("cuda"):
        return finding("cuda", "ok", names)
    return finding("cuda", "warning", f"{names}, but the device is {device}", "set DENOISED_DEVICE=cuda to use it")


def _processor() -> dict[str, str | None]:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in SLOW_CAPABILITIES:
        return finding(
            "processor", "warning", f"{capability}: no vector instructions are used", "use a newer CPU, or a GPU"
        )
    return finding("processor", "ok", capability)


def _threads() -> dict[str, str | None]:
    threads = int(os.environ.get("DENOISED_THREADS", "0")) or torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = f"{threads} threads for the network, {cores} cores for this process"
    if threads > cores:
        return finding("threads", "warning", f"{counts}: they wait for each other", f"DENOISED_THREADS={cores}")
    return finding("threads", "ok", counts)


def _compiler() -> dict[str, str | None]:
    compiler = next(compilers(), None)
    if compiler is None:
        advice = "install gcc (Debian, Ubuntu: apt install gcc), or name another compiler with CC"
        return finding("compiler", "warning", "no C compiler: networks run on slower kernels", advice)
    return finding("compiler", "ok", " ".join(compiler))


def _cache() -> dict[str, str | None]:
    folder = cache_folder()
    if folder is None:
        message = "the cache folder cannot be used: every start compiles the kernels, some seconds per network"
        advice = "own ~/.cache/denoised, or the denoised folder of XDG_CACHE_HOME, and let nobody else write to it"
        return finding("kernel cache", "warning", message, advice)
    return finding("kernel cache", "ok", str(folder))


def _model(folder: Path) -> dict[str, str | None]:
    check = f"model {folder.absolute().name}"
    try:
        loaded = load_for_serving(folder)
    except ModelError as error:
        return finding(check, "problem", str(error), "repair that file, or leave the folder out")
    card = loaded.model.card
    facts = f"{card.width}×{card.height}×{card.channels}, {len(card.labels)} classes, {card.default.sampler}"
    facts += "" if (folder / CARD_FILE).exists() else f", no {CARD_FILE}"
    if loaded.fallback is not None:
        return finding(check, "warning", f"{facts}; {loaded.fallback}", "it is served, but by slower kernels")
    return finding(check, "ok", f"{facts}, compiled kernels")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
