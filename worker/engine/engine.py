"""The engine: one turn is one network evaluation of the running batch's next members.

It knows no sampler (plans are tables), no queue and no picture: it gathers one row per
trajectory, evaluates, and applies all the small matrices at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch

from denoised.model.diffusion.guidance import ImageGuidance, apply_guidance
from denoised.model.diffusion.plans import advance, apply_learned_variance
from denoised.model.diffusion.predictions import Estimate
from denoised.model.serving.protocol import ServedModel
from denoised.worker.engine.batch import RunningBatch
from denoised.worker.engine.group import Group, Table
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.engine.turn import Advanced, InFlightStep, PendingEvaluation, Turn
from denoised.worker.error_kinds import is_out_of_memory, may_be_the_devices
from denoised.worker.errors import TrajectoryError

log = logging.getLogger("denoised.worker")

MAX_IN_FLIGHT = 2  # turns of a pipelined model
MAX_FITTED = 256  # sizes for which the memory is not computed again


class Engine:
    """Drives the running batch. Not thread-safe: one thread owns it.

    A pipelined model has two turns in flight, each of half the batch: while this thread applies the outcome of one,
    and publishes it, the network evaluates the other.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        max_batch: int,
        *,
        pipelined: bool = True,
        slots: Mapping[str, int] | None = None,
        memory_bytes: int | None = None,
        check_device: Callable[[str], None] = lambda model: None,
    ) -> None:
        """pipelined: whether models that ask for it (`ServedModel.min_pipelined_images`) are pipelined.

        slots: images in one evaluation, of models for which that is not `max_batch`.
        memory_bytes: that one evaluation may take; None is no limit.
        check_device: called with the model's name after an error that may come from the device; it raises DeviceError
            if the device is not sound.
        """
        self.models = models
        self._pipelined = pipelined
        fewest = {name: model.min_pipelined_images for name, model in models.items() if pipelined}
        min_pipelined = {name: count for name, count in fewest.items() if count is not None}
        self.batch: RunningBatch[Trajectory] = RunningBatch(max_batch, min_pipelined, slots)
        self._memory_bytes = memory_bytes
        self._check_device = check_device
        self._fitted: set[tuple[Hashable, int]] = set()  # (key, rows of a member) whose slots fit into memory
        self._tables: dict[str, Table] = {}  # by model
        self._groups: dict[str, deque[Group]] = {}  # of each model's last turns
        self._in_flight: deque[InFlightStep] = deque()

    def admit(self, members: Sequence[Trajectory]) -> None:
        """Admit the images of a job to the batch, with no more slots for their size than fit into memory."""
        for member in members:
            self._fit(member)
        self.batch.admit(members)

    def _fit(self, member: Trajectory) -> None:
        rows = 1 if member.guidance is None else 1 + len(member.guidance.others)
        if self._memory_bytes is None or (member.batch_key, rows) in self._fitted:
            return
        if len(self._fitted) >= MAX_FITTED:
            self._fitted.clear()
        self._fitted.add((member.batch_key, rows))
        height, width = member.registers.shape[-2:]
        needed = rows * self.models[member.model].evaluation_bytes(height, width)
        if needed and self._memory_bytes // needed < self.batch.slots.of_key(member.model, member.batch_key):
            self.batch.slots.lower(member.batch_key, self._memory_bytes // needed)

    def replace_model(self, name: str, slots: int) -> None:
        """Forget what is known of a model that has no members: `models` has another one, or none, from now on."""
        self._fitted.clear()
        self._tables.pop(name, None)
        self._groups.pop(name, None)
        model = self.models.get(name)
        if model is not None:
            self.batch.replace_model(name, slots, model.min_pipelined_images if self._pipelined else None)

    @torch.inference_mode()
    def step(self) -> Turn:
        """Choose, evaluate, advance, retire.

        Raises:
            DeviceError: if `check_device` does; the members stay as they are.
        """
        self._begin_turns()
        if not self._in_flight:
            return Turn()
        step = self._in_flight.popleft()
        turn = self._finish(step, self.batch.complete(step.members))
        for trajectory, _ in turn.failed:
            self.batch.evict(trajectory.job)
        self.batch.retire()
        if not len(self.batch):
            self._groups.clear()  # holds no tensors of trajectories that have left
        concurrent_rows = sum(other.rows for other in self._in_flight)
        seconds = time.perf_counter() - step.started_at
        return replace(turn, concurrent_rows=concurrent_rows, slots=step.slots, seconds=seconds)

    def _begin_turns(self) -> None:
        """Begin a turn, and a second one if the model is pipelined and the first still has members."""
        while len(self._in_flight) < MAX_IN_FLIGHT and (not self._in_flight or self.batch.in_flight):
            started_at = time.perf_counter()
            members = self.batch.choose()
            if not members:
                return
            evaluation = self._try_to_begin(members, pipelined=self.batch.in_flight)
            self._in_flight.append(InFlightStep(members, self.batch.turn_slots, started_at, evaluation))

    def _try_to_begin(self, members: Sequence[Trajectory], *, pipelined: bool) -> PendingEvaluation | Exception:
        try:
            return self._begin(members, pipelined)
        except Exception as error:
            return error.with_traceback(None)  # its frames would keep the tensors of the failed evaluation alive

    def _begin(self, members: Sequence[Trajectory], pipelined: bool) -> PendingEvaluation:
        """Begin to evaluate every member's row. If it is the only turn in flight, it is evaluated at once."""
        model = self.models[members[0].model]
        group = self._group(members, model.device)
        registers, rows = group.stacked(), group.rows()
        x, level = registers[:, 0], rows.level
        if group.guided is not None:  # (B + G + D, …): every member, then the guided ones again
            x, level = x[group.guided.order], level.of(group.guided.order)
        evaluation = x, level.t, level.alpha, level.sigma, group.conditioning
        if pipelined:
            return PendingEvaluation(group, registers, rows, model.begin(*evaluation))
        estimate = model.denoise(*evaluation)
        return PendingEvaluation(group, registers, rows, lambda: estimate)

    def _group(self, members: Sequence[Trajectory], device: torch.device) -> Group:
        """The group of these members: that of one of the model's last turns if it had the same members."""
        name = members[0].model
        recent = self._groups.setdefault(name, deque(maxlen=MAX_IN_FLIGHT))
        for group in recent:
            if group.is_of(members):
                return group
        recent.append(Group(members, self._tables.setdefault(name, Table(device)), device))
        return recent[-1]

    def _finish(self, step: InFlightStep, remaining: Sequence[Trajectory]) -> Turn:
        """Advance the members that have not been evicted by one row.

        If that fails, each half of them is evaluated again, so that only the members that cause it fail.
        """
        if not remaining:
            return Turn(step.rows)
        if isinstance(step.evaluation, Exception):
            error = step.evaluation
        else:
            try:
                return self._advance(step.evaluation, remaining)
            except Exception as raised:
                error = raised.with_traceback(None)
        if may_be_the_devices(error):
            self._check_device(remaining[0].model)
        if len(remaining) == 1:
            return Turn(failed=[(remaining[0], _as_trajectory_error(error))])
        middle = len(remaining) // 2
        left, right = (self._repeat(step, half) for half in (remaining[:middle], remaining[middle:]))
        failed = left.failed + right.failed
        if is_out_of_memory(error) and not failed:
            # Both halves had enough: it was the size of the batch, not one of its images.
            self.batch.slots.lower(remaining[0].batch_key, middle)
            fields = {"model": remaining[0].model, "images": middle}
            log.warning("out of memory: a turn holds fewer images of this size", extra=fields)
        return Turn(left.rows + right.rows, advanced=left.advanced + right.advanced, failed=failed, halved=True)

    def _repeat(self, step: InFlightStep, members: Sequence[Trajectory]) -> Turn:
        """Evaluate some members of a failed step again."""
        evaluation = self._try_to_begin(members, pipelined=False)
        return self._finish(replace(step, members=members, evaluation=evaluation), members)

    def _advance(self, evaluation: PendingEvaluation, remaining: Sequence[Trajectory]) -> Turn:
        group, rows, x_t = evaluation.group, evaluation.plan_rows, evaluation.x_t
        level = rows.level
        model = self.models[group.members[0].model]
        merged = _merge_guidance(evaluation, model.prediction_type)
        estimate = model.clipping(merged, x_t, level.alpha, level.sigma, group.is_guided)
        if group.unclipped is not None:
            estimate = estimate.replace(group.unclipped, merged.select(group.unclipped))
        z = group.drawn(x_t)
        if estimate.variance_output is not None:
            z = apply_learned_variance(z, estimate.variance_output, rows.log_variance_range)
        registers = advance(evaluation.registers, estimate, z, rows.matrices)
        # The largest magnitude is finite only if all are; isfinite of every element takes six times as long.
        finite = registers.flatten(1).abs().amax(dim=1).isfinite().tolist()
        turn = Turn(len(group.conditioning))
        evicted = set(map(id, group.members)) - set(map(id, remaining)) if len(remaining) < len(group.members) else ()
        parts = zip(group.members, finite, group.parted(registers), strict=True)
        for position, (trajectory, is_finite, own) in enumerate(parts):
            if id(trajectory) in evicted:
                continue
            if is_finite:
                turn.advanced.append(Advanced.by(trajectory, own, position, x_t, estimate))
            else:
                text = f"the network's output is not finite at step {trajectory.row + 1}"
                turn.failed.append((trajectory, TrajectoryError("nan_output", text)))
        return turn


def _merge_guidance(evaluation: PendingEvaluation, prediction_type: str) -> Estimate:
    """Wait for (x̂_0, ε̂) of every member, and merge the two or three estimates of the guided ones."""
    estimate, guided = evaluation.wait(), evaluation.group.guided
    if guided is None:
        return estimate
    x_t = evaluation.x_t
    conditional, others = estimate.split(len(x_t))
    unconditional, image_alone = others.split(len(guided.index))
    twice = guided.twice
    toward_image = None if twice is None else ImageGuidance(twice, guided.image_scale, image_alone)
    level = evaluation.plan_rows.level.of(guided.index)
    merged = apply_guidance(
        conditional.select(guided.index),
        unconditional,
        x_t[guided.index],
        level.alpha,
        level.sigma,
        prediction_type,
        guided.scale,
        guided.rescale,
        toward_image,
    )
    return conditional.replace(guided.index, merged)


def _as_trajectory_error(error: Exception) -> TrajectoryError:
    """What to report when the evaluation of a single trajectory raised `error`."""
    if isinstance(error, TrajectoryError):
        return error
    if is_out_of_memory(error):
        return TrajectoryError("out_of_memory", "the device has not enough memory for one image of this model")
    return TrajectoryError("evaluation_failed", f"{type(error).__name__}: {error}")
