"""The sections about the text-to-image model: one evaluation of its U-Net, and the servers under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bench.benchmark_run import BenchmarkRun
from bench.load.closed_loop import Round, closed_loop
from bench.load.servers import Server, start_denoised, start_peer
from bench.load.text_model import BUNDLED, CAPTIONS, SIDE, TOKENS, text_model_folder
from bench.load.workloads import REAL_TRAFFIC, THREE_STEP_COUNTS, ImageRequest, Workload
from bench.results import sample_names as names
from bench.results.samples import SampleRecorder
from bench.sections.kernels import Evaluate, has_compiler, record_times, time_in_turns
from bench.sections.load_sections import CLIENTS, check_same_images
from denoised.model.backends.text_backend import TextBackend
from denoised.model.serving.loading import load_text_model

GUIDED = Workload(names.GUIDED_LOAD, (25,), guided_every=1)


def measure_text_kernels(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Compare denoised's U-Net with diffusers' at batch 1 and 16."""
    folder = text_model_folder(run.folder)
    ours: TextBackend = load_text_model(folder).backend
    theirs = {names.CONTIGUOUS: torch.contiguous_format, names.CHANNELS_LAST: torch.channels_last}
    networks = {name: OutputOnly(folder, layout) for name, layout in theirs.items()}
    for batch in names.TABLE_BATCHES:
        inputs = _inputs(networks[names.CONTIGUOUS].network.config, batch)
        subjects: dict[str, Evaluate] = {names.DENOISED: lambda given=inputs: ours(*given)}  # type: ignore[misc]
        for name, network in networks.items():
            given = (inputs[0].contiguous(memory_format=theirs[name]), *inputs[1:])
            subjects[name] = lambda network=network, given=given: network(*given)  # type: ignore[misc]
        if batch in run.length.compiled and has_compiler():
            run.log(f"compiling diffusers' network for batch {batch}")
            subjects[names.COMPILED] = _compiled(networks[names.CONTIGUOUS], inputs)
        times = time_in_turns(subjects, run.length.kernel_rounds, run.length.kernel_seconds)
        record_times(run, recorder, names.batch(batch), times)


def measure_text_loads(run: BenchmarkRun, recorder: SampleRecorder) -> None:
    """Measure (a), (b) and denoised with sixteen clients and with one."""
    folder = text_model_folder(run.folder)
    workloads = [each.with_prompts(CAPTIONS, folder.name) for each in (THREE_STEP_COUNTS, REAL_TRAFFIC, GUIDED)]
    with ExitStack() as stack:

        def suspended(start: Callable[[], AbstractContextManager[Server]]) -> Server:
            began = time.perf_counter()
            server = stack.enter_context(start())
            recorder.add(names.WORKER_START, server.name, names.READY, time.perf_counter() - began)
            server.program.suspend()
            return server

        servers = [
            suspended(lambda: start_peer(names.LOCKED, "locked", run.folder, model=folder)),
            suspended(lambda: start_peer(names.BATCHING, "batching", run.folder, model=folder)),
            suspended(lambda: start_denoised(run.folder, "data-text", None if folder == BUNDLED else folder)),
        ]
        check_same_images(servers, ImageRequest(10, False, 0, 7, CAPTIONS[0], folder.name), (SIDE, SIDE))
        for number in range(run.length.rounds):
            for workload in workloads:
                for server in servers:
                    _measure(run, recorder, server, workload, CLIENTS, number)
            for server in servers:
                _measure(run, recorder, server, workloads[-1], 1, number)


def _measure(
    run: BenchmarkRun, recorder: SampleRecorder, server: Server, workload: Workload, clients: int, number: int
) -> None:
    """One round of a workload on one server."""
    length, condition = run.length, workload.name if clients > 1 else names.ONE_GUIDED
    seconds = length.seconds if clients > 1 else length.sweep_seconds
    with server.resumed():
        result: Round = asyncio.run(
            closed_loop(
                server.url,
                clients,
                workload.requests(number),
                warm_up=length.warm_up,
                seconds=seconds,
                size=(SIDE, SIDE),
                timeout=length.timeout,
            )
        )
    evaluations = sum(each.request.evaluations for each in result.counted) / len(result.counted)
    recorder.add(condition, server.name, names.EVALUATIONS, result.evaluations_per_second)
    recorder.add(condition, server.name, names.PICTURES, result.evaluations_per_second / evaluations)
    recorder.add(condition, server.name, names.LATENCY, result.latency())
    run.log(
        f"round {number + 1}, {condition}, {server.name}: {result.evaluations_per_second:.0f} evaluations/s, "
        f"median latency {result.latency():.2f} s"
    )


class OutputOnly(nn.Module):
    """diffusers' U-Net with denoised's signature: x (B, C, H, W), t (B,), context (B, M, D) → (B, C, H, W)."""

    def __init__(self, folder: Path, layout: torch.memory_format) -> None:
        super().__init__()
        network = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", low_cpu_mem_usage=False, torch_dtype=torch.float32
        )
        self.network: Any = network.eval().requires_grad_(False).to(memory_format=layout)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        output: Tensor = self.network(x, t, context, return_dict=False)[0]
        return output


def _inputs(config: dict[str, int], batch: int) -> Sequence[Tensor]:
    """x (B, C, H, W), t (B,), context (B, M, D): each image at a different noise level and with other text."""
    generator, side = torch.Generator().manual_seed(0), config["sample_size"]
    x = torch.randn(batch, config["in_channels"], side, side, generator=generator)
    context = torch.randn(batch, TOKENS, config["cross_attention_dim"], generator=generator)
    return x, torch.linspace(0, 999, batch), context


def _compiled(network: OutputOnly, inputs: Sequence[Tensor]) -> Evaluate:
    """The network compiled for one shape with its weights as constants (freezing)."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    with inductor.patch(freezing=True), torch.no_grad():
        compiled = torch.compile(network, dynamic=False)
        compiled(*inputs)
    return lambda: compiled(*inputs)
