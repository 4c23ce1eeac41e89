"""What the tests of `worker` share: a model of a few exact operations, jobs, and readers of both."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
import torch
from torch import Tensor

from denoised.jobs.record import JobRecord
from denoised.jobs.request import SamplingRequest
from denoised.jobs.store.store import Store
from denoised.model.diffusion.clipping import Clipping
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.level_choice import MODELS_OWN, LevelChoice
from denoised.model.diffusion.noise import NoiseSchedule
from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate, x0_from_epsilon
from denoised.model.diffusion.samplers import SAMPLERS, compile_plan
from denoised.model.serving.card import CardLatent as CardLatent
from denoised.model.serving.card import ModelCard
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.model.serving.protocol import Pictures
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import Trajectory
from denoised.worker.engine.turn import Turn
from tests.harness import LABELS, request

SCHEDULE = NoiseSchedule.from_name("linear")
TIMEOUT = 120.0  # seconds; only a hang reaches it


class FakeModel:
    """A `ServedModel` that computes with elementwise products and sums alone.

    The outcome of each row depends on that row only, to the last bit.

    Attributes:
        calls: The labels of each evaluation.
        prepared: The number of requests in each call of `prepare`.
        seconds: The duration of one evaluation.
        limit: Where x̂_0 is clipped.
        nan_class: The class whose rows come out as NaN.
        failing_class: The class that makes the whole evaluation raise `error`.
        min_pipelined_images: See `ServedModel`.
    """

    min_pipelined_images: int | None = None

    def __init__(
        self,
        name: str = "fake",
        *,
        shape: tuple[int, int, int] = (1, 4, 4),
        seconds: float = 0.0,
        limit: float | None = 1.0,
        variance_type: str = "fixed_small",
        nan_class: int | None = None,
        failing_class: int | None = None,
        error: Exception | None = None,
    ) -> None:
        self.shape = shape
        self.device = torch.device("cpu")
        self.clipping = Clipping(limit)
        self.prediction_type = "epsilon"
        self.variance_type = variance_type
        self.card = ModelCard(
            name=name,
            width=shape[2],
            height=shape[1],
            channels=shape[0],
            labels=LABELS,
            timesteps=SCHEDULE.timesteps,
            prediction_type="epsilon",
            samplers=list(SAMPLERS),
            eta_samplers=["ddim"],
            default={"sampler": "ddim", "steps": 5, "guidance_scale": 1.0},  # type: ignore[arg-type]
            max_images=16,
            numerics="fake",
        )
        self.calls: list[list[int]] = []
        self.prepared: list[int] = []
        self._seconds = seconds
        self._nan_class = nan_class
        self._failing_class = failing_class
        self._error = error or RuntimeError("this class fails")

    def plan(self, sampler: str, steps: int, eta: float, levels: LevelChoice = MODELS_OWN) -> Plan:
        grid = levels.of(Grid("leading", variance_type=self.variance_type))
        return compile_plan(sampler, SCHEDULE, steps, grid, eta)

    def shape_of(self, request: ConditioningRequest) -> tuple[int, int, int]:
        return self.shape

    def encode(self, requests: Sequence[ConditioningRequest]) -> Conditioning:
        labels = [len(LABELS) if request.label is None else request.label for request in requests]
        return Conditioning({"label": torch.tensor(labels)})

    def prepare(self, requests: Sequence[ConditioningRequest]) -> None:
        self.prepared.append(len(requests))

    def begin(
        self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Callable[[], Estimate]:
        """Like a pipelined network: it works, and fails, while the caller waits for it."""
        return lambda: self.denoise(x, t, alpha, sigma, conditioning)

    def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
        time.sleep(self._seconds)
        labels = conditioning["label"]
        self.calls.append(labels.tolist())
        if self._failing_class in self.calls[-1]:
            raise self._error
        shift = labels.to(x.dtype) * 0.25 - t * 0.0005
        epsilon = x * 0.75 + shift.view(-1, 1, 1, 1)
        if self._nan_class is not None:
            epsilon[labels == self._nan_class] = float("nan")
        variance_output = x * 0.25 if self.variance_type == "learned_range" else None
        return Estimate(x0_from_epsilon(x, epsilon, alpha, sigma), epsilon, variance_output)

    def decode(self, x0: Tensor) -> Pictures:
        pixels = ((x0 / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).numpy()

    def decode_limit(self, shape: tuple[int, int, int]) -> int:
        return 16

    def preview(self, x0: Tensor) -> Pictures:
        return self.decode(x0)


def _trajectories(model: FakeModel, job: str | None = None, **fields: Any) -> list[Trajectory]:
    from denoised.worker.engine.trajectory import trajectories

    asked = request(model=model.card.name, **fields)
    record = JobRecord(id=job or uuid.uuid4().hex, owner="", request=asked, created_at=0.0)
    return trajectories(record, model)


def _turns(engine: Engine) -> Iterator[Turn]:
    while len(engine.batch):
        yield engine.step()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tensors here are tiny: a second thread only waits for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fake_model() -> type[FakeModel]:
    """The class of the fake models."""
    return FakeModel


@pytest.fixture
def model() -> FakeModel:
    """A fake model that fails never and takes no time."""
    return FakeModel()


@pytest.fixture(scope="session")
def request_of() -> Callable[..., SamplingRequest]:
    """`request_of(**fields)`: four ddim steps without a label unless said otherwise."""
    return request


@pytest.fixture(scope="session")
def trajectories_of() -> Callable[..., list[Trajectory]]:
    """`trajectories_of(model, job, **fields)`: those of one job, created as the worker creates them."""
    return _trajectories


@pytest.fixture(scope="session")
def turns_of() -> Callable[[Engine], Iterator[Turn]]:
    """`turns_of(engine)`: its turns until the batch is empty."""
    return _turns


@pytest.fixture
def store(client: redis.Redis) -> Store:
    """A store of an empty Valkey."""
    return Store(client)


@pytest.fixture
def create(store: Store) -> Callable[..., JobRecord]:
    """`create(job_id, owner, created_at, watched, **request)`: a queued job in the store, in no queue."""

    def create(
        job_id: str | None = None,
        owner: str = "",
        created_at: float | None = None,
        store: Store = store,
        watched: bool = False,
        **fields: Any,
    ) -> JobRecord:
        now = time.time() if created_at is None else created_at
        record = JobRecord(job_id or uuid.uuid4().hex, owner, request(**fields), now, watched=watched)
        with store.client.pipeline() as pipeline:
            assert store.reserve(record.id, pipeline)
            store.create(record, {"queue_position": 0, "eta_seconds": None}, pipeline)
            pipeline.execute()
        return record

    return create


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """`wait_for(condition, what)`: until it holds."""

    def wait(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def kinds_of() -> Callable[[Sequence[dict[str, Any]]], list[str]]:
    """`kinds_of(events)`: their types in order."""
    return lambda events: [event["type"] for event in events]
