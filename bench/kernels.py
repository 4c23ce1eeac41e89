"""Sections about one evaluation of the network: ours, as the worker runs it, beside diffusers' in the same process.

Subjects take turns, each for a spell a round; a sample is the median of a spell's times.
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

from bench import names
from bench.convolutions import all_convolutions
from bench.figures import Samples
from bench.names import CHANNELS_LAST, COMPILED, CONTIGUOUS, CONVOLUTIONS, MILLISECONDS, OURS, TABLE_BATCHES
from bench.place import Place
from bench.servers import FOLDER
from denoised.model.serving.loading import ZOO, load_for_serving
from denoised.model.serving.pixel_model import PixelModel
from denoised.worker.model_loading import DEFAULT

LEAST_TIMES = 3  # a spell is at least so many

Evaluate = Callable[[], object]


def measure_kernels(place: Place, found: Samples) -> None:
    """Ours against every other path at batch 1 and 16, and its convolutions alone at 16."""
    networks = Networks()
    for batch in TABLE_BATCHES:
        subjects = networks.at(batch)
        if batch == max(TABLE_BATCHES):
            subjects[CONVOLUTIONS] = all_convolutions(networks.diffusers[CONTIGUOUS], *networks.inputs(batch))
        if batch in place.effort.compiled and has_compiler():
            place.say(f"compiling diffusers' network for batch {batch}")
            subjects[COMPILED] = networks.compiled(batch)
        times = alternate(subjects, place.effort.kernel_rounds, place.effort.spell)
        note(found, names.batch(batch), times)
        place.say(f"batch {batch}: " + ", ".join(f"{name} {median(t):.1f} ms" for name, t in times.items()))


def measure_shapes(place: Place, found: Samples) -> None:
    """Ours and diffusers' against the batch size, and at batch 1 against the size of the image."""
    effort, networks = place.effort, Networks()
    side = networks.ours.shape[-1]
    shapes = [(names.batch(batch), batch, side) for batch in effort.batches]
    shapes += [(names.pixels(times * side), 1, times * side) for times in effort.sizes]
    for condition, batch, pixels in shapes:
        times = alternate(networks.at(batch, pixels), effort.rounds, effort.spell)
        note(found, condition, times)
        place.say(f"{condition}: " + ", ".join(f"{name} {median(t):.1f} ms" for name, t in times.items()))


class Networks:
    """The bundled model as we serve it, and as diffusers loads it, in both memory formats."""

    def __init__(self) -> None:
        self.ours: PixelModel = load_for_serving(ZOO / DEFAULT, device="cpu").model
        self.diffusers: Mapping[str, nn.Module] = {
            CONTIGUOUS: _of_diffusers(torch.contiguous_format),
            CHANNELS_LAST: _of_diffusers(torch.channels_last),
        }

    def inputs(self, batch: int, side: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, side, side), t (B,), labels (B,): each image at another level, of another class."""
        channels, _, width = self.ours.shape
        x = torch.randn(batch, channels, side or width, side or width, generator=torch.Generator().manual_seed(0))
        return x, torch.linspace(0, 999, batch), torch.arange(batch) % len(self.ours.card.labels)

    def at(self, batch: int, side: int | None = None) -> dict[str, Evaluate]:
        """An evaluation of each at a batch size, on the same inputs."""
        x, t, labels = self.inputs(batch, side)
        lasting = x.contiguous(memory_format=torch.channels_last)
        return {
            OURS: lambda: self.ours.backend(x, t, labels),
            CONTIGUOUS: lambda: self.diffusers[CONTIGUOUS](x, t, labels),
            CHANNELS_LAST: lambda: self.diffusers[CHANNELS_LAST](lasting, t, labels),
        }

    def compiled(self, batch: int) -> Evaluate:
        """diffusers' network compiled for one shape, its weights constants: what it computes, not how it is called."""
        import torch._inductor.config as inductor

        inputs = self.inputs(batch)
        torch._dynamo.reset()
        with inductor.patch(freezing=True), torch.no_grad():
            network = torch.compile(self.diffusers[CONTIGUOUS], dynamic=False)
            network(*inputs)
        return lambda: network(*inputs)


class OutputOnly(nn.Module):
    """diffusers' network, called as ours: x (B, C, H, W), t (B,), labels (B,) → (B, C, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        output: Tensor = self.network(x, t, class_labels=labels, return_dict=False)[0]
        return output


def alternate(subjects: Mapping[str, Evaluate], rounds: int, spell: float) -> dict[str, list[float]]:
    """Milliseconds of each, a sample a round; they take turns, so that a slow minute of the machine slows them all."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    with torch.no_grad():
        for evaluate in subjects.values():
            evaluate()
        for _ in range(rounds):
            for name, evaluate in subjects.items():
                times[name].append(1000 * _spell(evaluate, spell))
    return times


def note(found: Samples, condition: str, times: Mapping[str, list[float]]) -> None:
    for name, samples in times.items():
        for sample in samples:
            found.add(condition, name, MILLISECONDS, sample)


def has_compiler() -> bool:
    """Whether there is what torch.compile needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _spell(evaluate: Evaluate, seconds: float) -> float:
    """The median seconds of one evaluation, repeated for so long."""
    evaluate()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < LEAST_TIMES:
        began = time.perf_counter()
        evaluate()
        taken.append(time.perf_counter() - began)
    return median(taken)


def _of_diffusers(layout: torch.memory_format) -> nn.Module:
    network = UNet2DModel.from_pretrained(FOLDER, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False)
    return OutputOnly(network).eval().requires_grad_(False).to(memory_format=layout)  # type: ignore[call-overload]
