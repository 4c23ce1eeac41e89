"""How far the images of a job have come in this worker's attempt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from denoised.jobs.record import ArrayFile, Image, JobRecord
from denoised.worker.engine.resume import ResumePoint
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.engine.turn import Advanced


@dataclass
class AttemptProgress:
    """The state of a job's images, updated turn by turn.

    reached: steps done, by image.
    images: finished images by index.
    points: where the unfinished images can be resumed, by index; an image at x_T has none.
    arrays: what the finished images have in addition to a picture.
    step: steps that all images have done.
    evaluations: rows evaluated so far, earlier attempts included, see `Trajectory.evaluations_of`.
    rows, turns: sum of the batch sizes, and number, of the turns of this attempt.
    """

    reached: list[int]
    images: dict[int, Image] = field(default_factory=dict)
    points: dict[int, ResumePoint] = field(default_factory=dict)
    arrays: list[ArrayFile] = field(default_factory=list)
    step: int = 0
    evaluations: int = 0
    rows: int = 0
    turns: int = 0

    def resume(self, record: JobRecord, trajectories: Sequence[Trajectory]) -> None:
        """Continue with the images that earlier attempts finished, and these trajectories for the others."""
        self.images = {image.index: image for image in record.images}
        self.arrays = [array for array in record.arrays if array.index in self.images]
        self.reached = [record.request.run_steps] * record.request.n
        for trajectory in trajectories:
            self.reached[trajectory.index] = trajectory.plan.step[trajectory.row - 1] if trajectory.row else 0
            if trajectory.row or trajectory.finished:
                self.points[trajectory.index] = ResumePoint(trajectory.row, trajectory.registers)
        self.step = min(self.reached)
        self.evaluations = sum(each.completed_evaluations for each in trajectories)
        finished = trajectories[0].total_evaluations * len(self.images) if trajectories else record.evaluations
        self.evaluations += finished

    def advance(self, batch: int, items: Sequence[Advanced]) -> bool:
        """Take in one turn. batch: rows in its evaluation. Returns whether all images have done a further step."""
        self.turns += 1
        self.rows += batch
        for item in items:
            self.evaluations += item.trajectory.evaluations_of(item.row - 1)
            self.reached[item.trajectory.index] = item.step
            self.points[item.trajectory.index] = ResumePoint(item.row, item.registers)
        before, self.step = self.step, max(self.step, min(self.reached))
        return self.step > before

    def finish(self, image: Image, arrays: Sequence[ArrayFile] = ()) -> None:
        """Take in a finished image, and what it has besides."""
        self.images[image.index] = image
        self.arrays += arrays
        self.points.pop(image.index, None)  # a picture that is returned as it is has none

    @property
    def mean_batch(self) -> float:
        """Mean rows in an evaluation while the attempt ran."""
        return self.rows / max(self.turns, 1)

    def count_ended(self, rows: int) -> int:
        """How many images have been through all rows of their plan and wait for what is made of them."""
        return sum(point.row == rows for point in self.points.values())

    def arrays_json(self) -> str:
        """The `arrays` field of the job's record."""
        return json.dumps([asdict(array) for array in self.arrays])

    def images_json(self) -> str:
        """The `images` field of the job's record."""
        return json.dumps([asdict(self.images[index]) for index in sorted(self.images)])
