"""One evaluation of the network on an accelerator: denoised's as a worker runs it, diffusers' eager and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from bench.accelerator.accelerator_run import AcceleratorRun
from bench.load.servers import FOLDER
from bench.results import sample_names as names
from bench.sections.kernels import OutputOnly
from denoised.model.backends.numerics import Precision
from denoised.model.serving.loading import load_for_serving

BATCHES = (1, 16, 64)
COMPILED_BATCHES = (16, 64)
ROUNDS = 5
EVALUATIONS_PER_SAMPLE = 15  # the median counts
WARM_UP = 3  # calls of a compiled network: the first compiles, the second records, the third runs what was recorded

Evaluate = Callable[[], object]


def measure_evaluations(section: AcceleratorRun) -> None:
    """Measure all subjects at each of BATCHES; they take turns."""
    for batch in BATCHES:
        if section.is_over:
            section.run.log(f"the time is up before batch {batch}")
            return
        subjects = _subjects(section, batch)
        for _ in range(ROUNDS):
            for name, evaluate in list(subjects.items()):
                if section.attempt(name, partial(_record, section, batch, name, evaluate)) is None:
                    del subjects[name]
            section.save()
        section.run.log(f"{names.batch(batch)}: {', '.join(subjects)}")


def _record(section: AcceleratorRun, batch: int, name: str, evaluate: Evaluate) -> bool:
    milliseconds = _median_milliseconds(evaluate, section.synchronize)
    section.recorder.add(names.batch(batch), name, names.MILLISECONDS, milliseconds)
    return True


def _subjects(section: AcceleratorRun, batch: int) -> dict[str, Evaluate]:
    """One evaluation of each network that can be built, on the same inputs."""
    subjects: dict[str, Evaluate] = {}
    for precision in section.precisions:
        for name, build in _builders(section, precision, batch).items():
            evaluate = section.attempt(f"{name}, batch {batch}", build)
            if evaluate is not None:
                subjects[name] = evaluate
    return subjects


def _builders(section: AcceleratorRun, precision: Precision, batch: int) -> dict[str, Callable[[], Evaluate]]:
    device = section.device
    builders: dict[str, Callable[[], Evaluate]] = {
        names.in_precision(names.DENOISED, precision): partial(_denoised, precision, batch, device),
        names.in_precision(names.CONTIGUOUS, precision): partial(_eager, precision, batch, device, "contiguous"),
        names.in_precision(names.CHANNELS_LAST, precision): partial(_eager, precision, batch, device, "channels_last"),
    }
    if section.compiled and batch in COMPILED_BATCHES:
        name = names.in_precision(names.COMPILED_WITH_GRAPHS, precision)
        builders[name] = partial(_compiled, precision, batch, device)
    return builders


def _denoised(precision: Precision, batch: int, device: str) -> Evaluate:
    model = load_for_serving(FOLDER, device=device, precision=precision).model
    x, t, labels = _inputs(batch, model.shape, device)
    return lambda: model.backend(x, t, labels)


def _eager(precision: Precision, batch: int, device: str, layout: str) -> Evaluate:
    network, (x, t, labels) = _load_diffusers(precision, batch, device, layout)
    return _in_precision(precision, lambda: network(x, t, labels))


@torch.no_grad()
def _compiled(precision: Precision, batch: int, device: str) -> Evaluate:
    network, (x, t, labels) = _load_diffusers(precision, batch, device, "contiguous")
    compiled = torch.compile(network, mode="reduce-overhead", dynamic=False)
    evaluate = _in_precision(precision, lambda: compiled(x, t, labels))
    for _ in range(WARM_UP):
        evaluate()
    return evaluate


def _in_precision(precision: Precision, evaluate: Evaluate) -> Evaluate:
    """The same evaluation, after setting torch's global switches for TF32."""

    def switched() -> object:
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        return evaluate()

    return switched


def _inputs(batch: int, shape: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, C, H, W), t (B,), labels (B,): each image at a different noise level."""
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    return x, torch.linspace(1, 999, batch, device=device), torch.arange(batch, device=device) % 10


def _load_diffusers(
    precision: Precision, batch: int, device: str, layout: str
) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    """diffusers' network in a precision and a memory format, and inputs in the same."""
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
def _median_milliseconds(evaluate: Evaluate, synchronize: Callable[[], None]) -> float:
    """The median time of an evaluation, including the wait for the device."""
    evaluate()
    synchronize()
    times = []
    for _ in range(EVALUATIONS_PER_SAMPLE):
        began = time.perf_counter()
        evaluate()
        synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return median(times)
