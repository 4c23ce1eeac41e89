"""The sections about one evaluation of the network: denoised's, as the worker runs it, and diffusers'.

All networks run in one process and take turns. A sample is the median time of one turn.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from bench.benchmark_run import BenchmarkRun
from bench.load.servers import FOLDER
from bench.results import sample_names as names
from bench.results.sample_names import (
    CHANNELS_LAST,
    COMPILED,
    CONTIGUOUS,
    CONVOLUTIONS,
    DENOISED,
    MILLISECONDS,
    TABLE_BATCHES,
)
from bench.results.samples import SampleRecorder
from bench.sections.convolutions import all_convolutions
from denoised.model.serving.loading import load_for_serving
from denoised.model.serving.pixel_model import PixelModel

MIN_EVALUATIONS = 3  # per turn

Evaluate = Callable[[], object]


def measure_kernels(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Compare denoised with every other path at batch 1 and 16, and with its convolutions alone at 16."""
    networks = Networks()
    for batch in TABLE_BATCHES:
        subjects = networks.evaluations(batch)
        if batch == max(TABLE_BATCHES):
            subjects[CONVOLUTIONS] = all_convolutions(networks.diffusers[CONTIGUOUS], *networks.inputs(batch))
        if batch in run.length.compiled and has_compiler():
            run.log(f"compiling diffusers' network for batch {batch}")
            subjects[COMPILED] = networks.compiled(batch)
        times = time_in_turns(subjects, run.length.kernel_rounds, run.length.kernel_seconds)
        record_times(run, recorder, names.batch(batch), times)


def measure_shapes(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Compare denoised with diffusers over the batch size, and at batch 1 over the size of the image."""
    length, networks = run.length, Networks()
    side = networks.denoised.shape[-1]
    shapes = [(names.batch(batch), batch, side) for batch in length.batches]
    shapes += [(names.pixels(multiple * side), 1, multiple * side) for multiple in length.sizes]
    for condition, batch, pixels in shapes:
        times = time_in_turns(networks.evaluations(batch, pixels), length.rounds, length.kernel_seconds)
        record_times(run, recorder, condition, times)


class Networks:
    """The bundled model as denoised serves it, and as diffusers loads it, in both memory formats."""

    def __init__(self) -> None:
        denoised = load_for_serving(FOLDER, device="cpu").model
        assert isinstance(denoised, PixelModel)
        self.denoised = denoised
        self.diffusers: Mapping[str, nn.Module] = {
            CONTIGUOUS: _load_diffusers(torch.contiguous_format),
            CHANNELS_LAST: _load_diffusers(torch.channels_last),
        }

    def inputs(self, batch: int, side: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, side, side), t (B,), labels (B,): each image at a different noise level and of a different class."""
        channels, _, width = self.denoised.shape
        x = torch.randn(batch, channels, side or width, side or width, generator=torch.Generator().manual_seed(0))
        return x, torch.linspace(0, 999, batch), torch.arange(batch) % len(self.denoised.card.labels)

    def evaluations(self, batch: int, side: int | None = None) -> dict[str, Evaluate]:
        """One evaluation of each network at a batch size, on the same inputs."""
        x, t, labels = self.inputs(batch, side)
        x_channels_last = x.contiguous(memory_format=torch.channels_last)
        return {
            DENOISED: lambda: self.denoised.backend(x, t, labels),
            CONTIGUOUS: lambda: self.diffusers[CONTIGUOUS](x, t, labels),
            CHANNELS_LAST: lambda: self.diffusers[CHANNELS_LAST](x_channels_last, t, labels),
        }

    def compiled(self, batch: int) -> Evaluate:
        """diffusers' network compiled for one shape with its weights as constants (freezing)."""
        import torch._inductor.config as inductor

        inputs = self.inputs(batch)
        torch._dynamo.reset()
        with inductor.patch(freezing=True), torch.no_grad():
            network = torch.compile(self.diffusers[CONTIGUOUS], dynamic=False)
            network(*inputs)
        return lambda: network(*inputs)


class OutputOnly(nn.Module):
    """diffusers' network with denoised's signature: x (B, C, H, W), t (B,), labels (B,) → (B, C, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        output: Tensor = self.network(x, t, class_labels=labels, return_dict=False)[0]
        return output


def time_in_turns(subjects: Mapping[str, Evaluate], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each subject, one sample per round.

    The subjects take turns of so many seconds, so that a slow phase of the machine affects all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    with torch.no_grad():
        for evaluate in subjects.values():
            evaluate()
        for _ in range(rounds):
            for name, evaluate in subjects.items():
                times[name].append(1000 * _median_seconds(evaluate, seconds))
    return times


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def record_times(run: BenchmarkRun, recorder: SampleRecorder, condition: str, times: Mapping[str, list[float]]) -> None:
    for name, samples in times.items():
        for sample in samples:
            recorder.add(condition, name, MILLISECONDS, sample)
    run.log(f"{condition}: " + ", ".join(f"{name} {median(t):.1f} ms" for name, t in times.items()))


def _median_seconds(evaluate: Evaluate, seconds: float) -> float:
    """The median time of one evaluation, repeated for so long."""
    evaluate()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < MIN_EVALUATIONS:
        began = time.perf_counter()
        evaluate()
        times.append(time.perf_counter() - began)
    return median(times)


def _load_diffusers(layout: torch.memory_format) -> nn.Module:
    network = UNet2DModel.from_pretrained(FOLDER, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False)
    return OutputOnly(network).eval().requires_grad_(False).to(memory_format=layout)  # type: ignore[call-overload]
