"""Checks what a worker would find on this machine: `python -m denoised.worker.diagnostics`, for `denoised doctor`.

It prints one JSON object per line: {"check", "state": "ok" | "warning" | "problem", "message", "advice"}.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from denoised.model.backends.native.compiler import cache_folder, compilers
from denoised.model.backends.numerics import Precision
from denoised.model.checkpoints.card_file import CARD_FILE
from denoised.model.checkpoints.folders import model_name
from denoised.model.errors import CheckpointError, ModelError
from denoised.model.hub.hub_name import HubName
from denoised.model.hub.terminal import terminal_puller
from denoised.model.serving.loading import load_for_serving
from denoised.worker.model_loading import bundled, check_device, named_folders

SLOW_CAPABILITIES = ("DEFAULT", "NO AVX")  # names that PyTorch gives to CPUs without vector instructions
GIB = 1024**3


@dataclass(frozen=True)
class Weights:
    """Folders of weights for the models that take a prompt; None for none.

    Attributes:
        loras: Low-rank adapters.
        controls: ControlNets.
    """

    loras: Path | None = None
    controls: Path | None = None


NO_WEIGHTS = Weights()


def finding(check: str, state: str, message: str, advice: str | None = None) -> dict[str, str | None]:
    """One line of the output. advice: what to do about it."""
    return {"check": check, "state": state, "message": message, "advice": advice}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the findings, each as soon as it is known."""
    parser = ArgumentParser(prog="python -m denoised.worker.diagnostics")
    parser.add_argument("--device", default=os.environ.get("DENOISED_DEVICE", "cpu"))
    parser.add_argument("--model", action="append")
    parser.add_argument("--loras", type=Path, default=os.environ.get("DENOISED_LORAS") or None)
    parser.add_argument("--controlnets", type=Path, default=os.environ.get("DENOISED_CONTROLNETS") or None)
    parser.add_argument("--precision", default=os.environ.get("DENOISED_PRECISION", "float32"))
    parser.add_argument("--threads")
    parser.add_argument("--without-models", action="store_true")
    options = parser.parse_args(arguments)
    if options.without_models:
        _print(examine_device(options.device, options.precision, options.threads))
        return
    named = [item.strip() for item in os.environ.get("DENOISED_MODELS", "").split(",") if item.strip()]
    folders, missing = _find_models(options.model or named)
    _print(missing)
    weights = Weights(options.loras, options.controlnets)
    _print(examine(options.device, [*bundled(), *folders], options.precision, weights, options.threads))


def _print(findings: Iterable[dict[str, str | None]]) -> None:
    """Print findings, each as soon as it is known."""
    for found in findings:
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def examine_device(device: str, precision: Precision, threads: str | None = None) -> Iterator[dict[str, str | None]]:
    """Check a device alone."""
    yield _device(device, precision)
    yield _cuda(device)
    yield _threads(threads)


def _find_models(names: Sequence[str]) -> tuple[list[Path], list[dict[str, str | None]]]:
    """The folders of models that are here, and findings about those that `serve` would download."""
    puller, folders, missing = terminal_puller(), list[Path](), list[dict[str, str | None]]()
    for text in names:
        name = None if Path(text).exists() else HubName.parse(text)
        if name is None:
            folders.append(Path(text))
        elif (cached := puller.find_cached(name)) is not None:
            folders.append(cached)
        else:
            message = "no folder here, and not downloaded yet: `serve` downloads it when it starts"
            missing.append(finding(f"model {text}", "warning", message, f"denoised pull {text}"))
    return folders, missing


def examine(
    device: str,
    folders: Sequence[Path],
    precision: Precision = "float32",
    weights: Weights = NO_WEIGHTS,
    threads: str | None = None,
) -> Iterator[dict[str, str | None]]:
    """Check the device, processor, compiler and cache; then load each model folder as a worker does.

    threads: of the network; None = as DENOISED_THREADS says.
    """
    checked = _device(device, precision)
    yield checked
    yield _cuda(device)
    yield _processor()
    yield _threads(threads)
    yield _compiler()
    yield _cache()
    usable = device if checked["state"] == "ok" else "cpu"
    yield from _models(folders, usable, precision if usable == device else "float32", weights)


def _device(device: str, precision: Precision) -> dict[str, str | None]:
    try:
        check_device(device, precision)
    except CheckpointError as error:
        return finding(
            "device",
            "problem",
            str(error),
            "DENOISED_DEVICE=cpu" if precision == "float32" else "DENOISED_PRECISION=float32",
        )
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


def _threads(text: str | None) -> dict[str, str | None]:
    given = (os.environ.get("DENOISED_THREADS", "") if text is None else text) or "0"
    if not given.isdecimal():
        return finding("threads", "problem", f"DENOISED_THREADS={given!r} is not a number", "0 means one per core")
    count = int(given) or torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = f"{count} threads for the network, {cores} cores for this process"
    if count > cores:
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


def _models(
    folders: Sequence[Path], device: str, precision: Precision, weights: Weights
) -> Iterator[dict[str, str | None]]:
    """Load each folder; then check that all of them can be served together."""
    for folder in folders:
        yield from _model(folder, device, precision, weights)
    try:
        named_folders(folders)
    except CheckpointError as error:
        yield finding("models", "problem", str(error), "rename a folder, or leave it out")


def _model(folder: Path, device: str, precision: Precision, weights: Weights) -> Iterator[dict[str, str | None]]:
    check = f"model {model_name(folder) if folder.exists() else folder.absolute().name}"
    try:
        loaded = load_for_serving(
            folder, device=device, precision=precision, loras=weights.loras, controls=weights.controls
        )
    except ModelError as error:
        advice = "repair that file, or leave the folder out" if folder.exists() else "name a folder that exists"
        yield finding(check, "problem", str(error), advice)
        return
    card = loaded.model.card
    takes = "prompts" if card.prompts else f"{len(card.labels)} classes"
    facts = f"{card.width}×{card.height}×{card.channels}, {takes}, {card.default.sampler}"
    facts += "" if (folder / CARD_FILE).exists() else f", no {CARD_FILE}"
    if loaded.refused_precision is not None:
        yield finding(check, "warning", f"{facts}; {loaded.refused_precision}", "it is served in float32")
    elif loaded.fallback is not None:
        yield finding(check, "warning", f"{facts}; {loaded.fallback}", "it is served, but by slower kernels")
    else:
        yield finding(check, "ok", f"{facts}, compiled kernels")
    if card.loras:
        yield finding(f"adapters of {card.name}", "ok", ", ".join(lora.name for lora in card.loras))
    for problem in loaded.lora_problems:
        yield finding(f"adapters of {card.name}", "warning", problem, "it is not offered with this model")
    if card.controls:
        names = ", ".join(control.name for control in card.controls)
        yield finding(f"ControlNets of {card.name}", "ok", names)
    for problem in loaded.control_problems:
        yield finding(f"ControlNets of {card.name}", "warning", problem, "it is not offered with this model")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
