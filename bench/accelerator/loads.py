"""The loads over HTTP on an accelerator: denoised and its peers in each precision, the peers also compiled.

All servers start once and stay alive for the run; all but one are suspended. A server that fails is omitted from
then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bench.accelerator.accelerator_run import AcceleratorRun
from bench.errors import BenchError
from bench.load.servers import (
    FOLDER,
    BareLoop,
    EvaluationOptions,
    Server,
    start_bare_loop,
    start_denoised_on,
    start_peer,
)
from bench.load.workloads import REAL_TRAFFIC, THREE_STEP_COUNTS, TWENTY_STEPS
from bench.results import sample_names as names
from bench.sections.load_sections import (
    CLIENTS,
    PROBE,
    TOLERANCE,
    engine_rate,
    load_denoised,
    load_server,
    probe_image,
    record_load,
)
from denoised.model.serving.loading import load_model
from denoised.model.serving.protocol import ServedModel
from denoised.model.serving.sampling import sample
from denoised.worker.model_loading import load_models

WORKLOADS = (THREE_STEP_COUNTS, REAL_TRAFFIC)
MEAN_TOLERANCE = 2.0  # mean difference in gray levels between an image in lower precision and that in float32
BARE_SECONDS = 1.5


class MeasuredSystem(Protocol):
    """A system that is measured once per round."""

    @property
    def name(self) -> str: ...

    def measure(self, section: AcceleratorRun, number: int) -> None: ...


@dataclass(frozen=True)
class DenoisedSystem:
    """denoised's server, and its engine alone with as many trajectories, measured right after each other."""

    server: Server
    model: ServedModel
    options: EvaluationOptions

    @property
    def name(self) -> str:
        return self.server.name

    def measure(self, section: AcceleratorRun, number: int) -> None:
        recorder, length = section.recorder, section.run.length
        for workload in WORKLOADS:
            rows = load_denoised(section.run, self.server, recorder, workload, number)
            rate = engine_rate(self.model, workload, number, rows, length)
            recorder.add(workload.name, self.options.name(names.ENGINE), names.EVALUATIONS, rate)
        _measure_one_client(section, self.server, number)


@dataclass(frozen=True)
class PeerSystem:
    """A peer's server. one_client: also measure it with a single client."""

    server: Server
    one_client: bool

    @property
    def name(self) -> str:
        return self.server.name

    def measure(self, section: AcceleratorRun, number: int) -> None:
        for workload in WORKLOADS:
            result = load_server(section.run, self.server, workload, CLIENTS, number, section.run.length.seconds)
            record_load(section.recorder, workload.name, self.name, result)
        if self.one_client:
            _measure_one_client(section, self.server, number)


@dataclass(frozen=True)
class BareLoopSystem:
    """The bare loop has no requests: one measurement counts for both workloads."""

    loop: BareLoop

    @property
    def name(self) -> str:
        return self.loop.program.name

    def measure(self, section: AcceleratorRun, number: int) -> None:
        rate = self.loop.evaluations_per_second(min(BARE_SECONDS, section.run.length.seconds))
        for workload in WORKLOADS:
            section.recorder.add(workload.name, self.name, names.EVALUATIONS, rate)
            section.recorder.add(workload.name, self.name, names.CHOSEN_BATCH, self.loop.images)


def measure_accelerator_loads(section: AcceleratorRun) -> None:
    """Start all systems, then measure them round by round until the rounds are done or the time is up."""
    try:
        measure_in_turns(section, _start_systems(section))
    finally:
        section.run.log("stopping the servers")
        section.stop_all()


def measure_in_turns(section: AcceleratorRun, systems: Sequence[MeasuredSystem]) -> None:
    """Measure each system once per round, without those that have failed."""
    remaining = list(systems)
    section.recorder.add(names.WINDOW, names.ALL_SUBJECTS, names.SECONDS, section.run.length.seconds)
    for number in range(section.run.length.rounds):
        for system in list(remaining):
            if section.is_over:
                section.run.log(f"the time is up before {system.name}, round {number + 1}")
                return
            if section.attempt(system.name, partial(_measure_and_log, system, section, number)) is None:
                remaining.remove(system)
            section.save()


def _measure_and_log(system: MeasuredSystem, section: AcceleratorRun, number: int) -> bool:
    system.measure(section, number)
    rates = ", ".join(
        f"{condition} {samples[-1]:.0f} evaluations/s"
        for (condition, name, quantity), samples in section.recorder.values.items()
        if (name, quantity) == (system.name, names.EVALUATIONS)
    )
    section.run.log(f"round {number + 1}, {system.name}: {rates}")
    return True


def _measure_one_client(section: AcceleratorRun, server: Server, number: int) -> None:
    result = load_server(section.run, server, TWENTY_STEPS, 1, number, section.run.length.sweep_seconds)
    section.recorder.add(names.ONE_CLIENT, server.name, names.LATENCY, result.latency())


def _start_systems(section: AcceleratorRun) -> list[MeasuredSystem]:
    """The systems that started and make the right image, in the order of their turns.

    denoised starts first and alone, since its worker measures at startup how many images an evaluation should hold;
    then all peers start concurrently, since compiling them takes long.
    """
    expected = _expected_image()
    denoised = [
        section.attempt(options.name(names.DENOISED), partial(_start_denoised, section, options, expected))
        for options in (EvaluationOptions(section.device, precision) for precision in section.precisions)
    ]
    variants = [
        EvaluationOptions(section.device, precision, compiled)
        for compiled in ((False, True) if section.compiled else (False,))
        for precision in section.precisions
    ]
    starting: dict[str, Callable[[], MeasuredSystem]] = {}
    for name, start in _peer_starters(section, expected).items():
        starting |= {options.name(name): partial(start, options) for options in variants}
    section.run.log(f"starting {len(starting)} peers")
    with ThreadPoolExecutor(len(starting)) as pool:
        peers = list(pool.map(section.attempt, starting, starting.values()))
    systems = [system for system in (*denoised, *peers) if system is not None]
    section.run.log(f"{len(systems)} are ready")
    return systems


def _peer_starters(
    section: AcceleratorRun, expected: NDArray[np.int64]
) -> dict[str, Callable[[EvaluationOptions], MeasuredSystem]]:
    """How to start each peer; the slowest, (a), takes its turn last."""
    folder = section.run.folder

    def batching(options: EvaluationOptions) -> MeasuredSystem:
        starting = start_peer(options.name(names.BATCHING), "batching", folder, options)
        return PeerSystem(_start_checked(section, starting, expected, options), one_client=True)

    def bare(options: EvaluationOptions) -> MeasuredSystem:
        loop = section.start(start_bare_loop(folder, options.name(names.BARE), options))
        section.run.log(f"{loop.program.name}: {loop.images} images, {loop.layout}")
        return BareLoopSystem(loop)

    def locked(options: EvaluationOptions) -> MeasuredSystem:
        starting = start_peer(options.name(names.LOCKED), "locked", folder, options)
        return PeerSystem(_start_checked(section, starting, expected, options), one_client=False)

    return {names.BATCHING: batching, names.BARE: bare, names.LOCKED: locked}


def _start_denoised(section: AcceleratorRun, options: EvaluationOptions, expected: NDArray[np.int64]) -> MeasuredSystem:
    model = load_models([], device=options.device, max_images=1, precision=options.precision)[FOLDER.name]
    server = _start_checked(section, start_denoised_on(options, section.run.folder), expected, options)
    return DenoisedSystem(server, model, options)


def _start_checked(
    section: AcceleratorRun,
    starting: AbstractContextManager[Server],
    expected: NDArray[np.int64],
    options: EvaluationOptions,
) -> Server:
    """Start a server, compare its image with the expected one, and leave it suspended."""
    server = section.start(starting)
    difference = np.abs(probe_image(server) - expected)
    section.run.log(
        f"{server.name} is ready; its image differs by {difference.mean():.2f} gray levels on average, "
        f"{difference.max()} at most"
    )
    if difference.max() > TOLERANCE if options.precision == "float32" else difference.mean() > MEAN_TOLERANCE:
        raise BenchError(f"{server.name} makes another image of {PROBE}: it differs by {difference.max()} gray levels")
    return server


@torch.no_grad()
def _expected_image() -> NDArray[np.int64]:
    """denoised's image for PROBE, made on the CPU: gray levels (H, W)."""
    model = load_model(FOLDER)
    x0 = sample(model, [PROBE.label], seed=PROBE.seed, sampler="ddim", steps=PROBE.steps)
    return np.asarray(model.decode(x0)[0], dtype=np.int64).squeeze(-1)
