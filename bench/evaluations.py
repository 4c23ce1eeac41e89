"""One evaluation of the network on an accelerator: ours as a worker runs it, diffusers' as it comes and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from bench import names
from bench.kernels import OutputOnly
from bench.servers import FOLDER
from bench.trial import Trial
from denoised.model.backends.numerics import Precision
from denoised.model.serving.loading import ZOO, load_for_serving
from denoised.worker.model_loading import DEFAULT

BATCHES = (1, 16, 64)
COMPILED_BATCHES = (16, 64)
TIMES, ROUNDS = 15, 5  # evaluations of a spell, of which the median counts; spells
WARM_UP = 3  # calls of a compiled network: the first compiles, the second records, the third runs what was recorded

Evaluate = Callable[[], object]


def measure_evaluations(trial: Trial) -> None:
    """All subjects at each of BATCHES; they take turns."""
    for batch in BATCHES:
        if trial.is_over:
            trial.place.say(f"the time is up before batch {batch}")
            return
        subjects = _subjects(trial, batch)
        for _ in range(ROUNDS):
            for name, evaluate in list(subjects.items()):
                if trial.attempt(name, partial(_note, trial, batch, name, evaluate)) is None:
                    del subjects[name]
            trial.keep()
        trial.place.say(f"{names.batch(batch)}: {', '.join(subjects)}")


def _note(trial: Trial, batch: int, name: str, evaluate: Evaluate) -> bool:
    trial.found.add(names.batch(batch), name, names.MILLISECONDS, _milliseconds(evaluate, trial.wait))
    return True


def _subjects(trial: Trial, batch: int) -> dict[str, Evaluate]:
    """An evaluation of each that can be had, on the same inputs."""
    subjects: dict[str, Evaluate] = {}
    for precision in trial.precisions:
        for name, make in _makers(trial, precision, batch).items():
            evaluate = trial.attempt(f"{name}, batch {batch}", make)
            if evaluate is not None:
                subjects[name] = evaluate
    return subjects


def _makers(trial: Trial, precision: Precision, batch: int) -> dict[str, Callable[[], Evaluate]]:
    device = trial.device
    makers: dict[str, Callable[[], Evaluate]] = {
        names.in_precision(names.OURS, precision): partial(_ours, precision, batch, device),
        names.in_precision(names.CONTIGUOUS, precision): partial(_eager, precision, batch, device, "contiguous"),
        names.in_precision(names.CHANNELS_LAST, precision): partial(_eager, precision, batch, device, "channels_last"),
    }
    if trial.compiled and batch in COMPILED_BATCHES:
        name = names.in_precision(names.COMPILED_WITH_GRAPHS, precision)
        makers[name] = partial(_compiled, precision, batch, device)
    return makers


def _ours(precision: Precision, batch: int, device: str) -> Evaluate:
    model = load_for_serving(ZOO / DEFAULT, device=device, precision=precision).model
    x, t, labels = _inputs(batch, model.shape, device)
    return lambda: model.backend(x, t, labels)


def _eager(precision: Precision, batch: int, device: str, layout: str) -> Evaluate:
    network, (x, t, labels) = _of_diffusers(precision, batch, device, layout)
    return _in(precision, lambda: network(x, t, labels))


@torch.no_grad()
def _compiled(precision: Precision, batch: int, device: str) -> Evaluate:
    network, (x, t, labels) = _of_diffusers(precision, batch, device, "contiguous")
    run = torch.compile(network, mode="reduce-overhead", dynamic=False)
    evaluate = _in(precision, lambda: run(x, t, labels))
    for _ in range(WARM_UP):
        evaluate()
    return evaluate


def _in(precision: Precision, evaluate: Evaluate) -> Evaluate:
    """The same, torch's switches set for that precision."""

    def switched() -> object:
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        return evaluate()

    return switched


def _inputs(batch: int, shape: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, C, H, W), t (B,), labels (B,): each image at another level."""
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    return x, torch.linspace(1, 999, batch, device=device), torch.arange(batch, device=device) % 10


def _of_diffusers(
    precision: Precision, batch: int, device: str, layout: str
) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    """diffusers' network in a precision and a memory format, and inputs that it takes as they are."""
    from diffusers import UNet2DModel

    network = UNet2DModel.from_pretrained(FOLDER, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False)
    config = network.config
    x, t, labels = _inputs(batch, (config.in_channels, config.sample_size, config.sample_size), device)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    network = network.to(device, dtype).to(memory_format=memory_format)
    return OutputOnly(network).eval().requires_grad_(False), (
        x.to(dtype).contiguous(memory_format=memory_format),
        t,
        labels,
    )


@torch.no_grad()
def _milliseconds(evaluate: Evaluate, wait: Callable[[], None]) -> float:
    """The median of a spell, the host's waiting for the device included."""
    evaluate()
    wait()
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        evaluate()
        wait()
        taken.append(1000 * (time.perf_counter() - began))
    return median(taken)
