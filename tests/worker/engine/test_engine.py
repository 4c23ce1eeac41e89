"""The engine: every image is the one that it would have been alone, whichever jobs join, fail or wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from denoised.model.diffusion.plans import Plan
from denoised.model.diffusion.predictions import Estimate
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.serving.conditioning import Conditioning, ConditioningRequest
from denoised.worker.engine.engine import Engine
from denoised.worker.engine.trajectory import Guidance, Seeds, Trajectory
from denoised.worker.engine.turn import Turn

Trajectories = Callable[..., list[Trajectory]]
Turns = Callable[[Engine], Iterator[Turn]]
Outcome = dict[tuple[str, int], bytes]


@pytest.fixture(autouse=True, params=[None, 2], ids=["one turn at a time", "two turns at once"])
def min_pipelined_images(
    request: pytest.FixtureRequest, fake_model: Any, monkeypatch: pytest.MonkeyPatch
) -> int | None:
    """Whether networks are at two halves of the batch at once; it changes nothing but that."""
    monkeypatch.setattr(fake_model, "min_pipelined_images", request.param)
    return request.param  # type: ignore[no-any-return]


one_turn_at_a_time = pytest.mark.parametrize("min_pipelined_images", [None], indirect=True)


@dataclass(frozen=True)
class Arrival:
    """One job of a mix: its request, and the turn before which it is admitted."""

    turn: int
    fields: dict[str, Any]


SAMPLING = st.one_of(
    st.builds(lambda sampler: {"sampler": sampler}, st.sampled_from(list(SAMPLERS))),
    st.builds(lambda eta: {"sampler": "ddim", "eta": eta}, st.sampled_from([0.0, 0.3, 1.0])),
)
FIELDS = st.builds(
    lambda sampling, label, scale, rescale, **rest: {
        **sampling,
        "label": label,
        "guidance_scale": scale if label is not None else 1.0,
        "guidance_rescale": rescale if label is not None and scale != 1.0 else 0.0,
        **rest,
    },
    SAMPLING,
    label=st.sampled_from([None, 0, 1, 2, 3]),
    scale=st.sampled_from([1.0, 1.5, 7.0]),
    rescale=st.sampled_from([0.0, 0.7]),
    spacing=st.sampled_from([None, "trailing", "linspace", "geometric", "beta"]),
    steps=st.integers(1, 7),
    n=st.integers(1, 3),
    seed=st.integers(0, 2**53 - 3),
)
ARRIVALS = st.lists(st.builds(Arrival, st.integers(0, 9), FIELDS), min_size=1, max_size=5)


def finals(turns: Iterator[Turn]) -> Outcome:
    """The bytes of each finished image by job and index."""
    items = (item for turn in turns for item in turn.advanced if item.result is not None)
    return {(item.trajectory.job, item.trajectory.index): as_bytes(item.result) for item in items}


def as_bytes(tensor: Tensor | None) -> bytes:
    assert tensor is not None
    return tensor.numpy().tobytes()


def alone(model: Any, trajectories: list[Trajectory]) -> Outcome:
    """The outcome of each of them in an engine of its own."""
    found: Outcome = {}
    for trajectory in trajectories:
        engine = Engine({model.card.name: model}, max_batch=1)
        engine.batch.admit([trajectory])
        while len(engine.batch):
            found |= finals(iter([engine.step()]))
    return found


def together(engine: Engine, arrivals: dict[int, list[Trajectory]]) -> Outcome:
    """The outcome of all of them in one engine, admitted at different turns."""
    found: Outcome = {}
    turn = 0
    while len(engine.batch) or any(when >= turn for when in arrivals):
        engine.batch.admit(arrivals.get(turn, []))
        found |= finals(iter([engine.step()]))
        turn += 1
    return found


@settings(max_examples=40, deadline=None)
@given(jobs_of_mix=ARRIVALS, max_batch=st.integers(1, 6))
def test_in_any_mix_every_image_has_the_bytes_of_a_run_alone(
    jobs_of_mix: list[Arrival], max_batch: int, fake_model: Any, trajectories_of: Trajectories
) -> None:
    """Next to other samplers, steps, labels and guidance, admitted at any turn, with few slots or many
    (stable-diffusion-webui#376, sglang#28502, diffusers#7851)."""
    model = fake_model()
    jobs = [(arrival, f"job-{k}") for k, arrival in enumerate(jobs_of_mix)]
    expected: Outcome = {}
    arrivals: dict[int, list[Trajectory]] = {}
    for arrival, job in jobs:
        expected |= alone(model, trajectories_of(model, job, **arrival.fields))
        arrivals.setdefault(arrival.turn, []).extend(trajectories_of(model, job, **arrival.fields))
    assert together(Engine({"fake": model}, max_batch), arrivals) == expected


def test_a_learned_variance_is_each_images_own(fake_model: Any, trajectories_of: Trajectories) -> None:
    """Guided and not, next to a sampler that does not use it."""
    model = fake_model(variance_type="learned_range")
    asked = {
        "a": {"sampler": "ddpm", "label": 1, "guidance_scale": 3.0, "guidance_rescale": 0.5, "n": 2},
        "b": {"sampler": "ddpm", "label": 2},
        "c": {"sampler": "dpmpp_2m", "label": 1},
    }
    expected = alone(model, [t for job, fields in asked.items() for t in trajectories_of(model, job, **fields)])
    arrivals = {k: trajectories_of(model, job, **fields) for k, (job, fields) in enumerate(asked.items())}
    assert together(Engine({"fake": model}, 8), arrivals) == expected
    fixed = alone(fake_model(), trajectories_of(fake_model(), "b", **asked["b"]))
    assert fixed[("b", 0)] != expected[("b", 0)]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_an_image_that_joins_at_any_step_changes_neither_its_own_bytes_nor_the_others(
    sampler: str, model: Any, trajectories_of: Trajectories
) -> None:
    """sglang#28502: B joins when A is at step k, for every k."""
    eta = 1.0 if sampler == "ddim" else 0.0
    first = {"sampler": sampler, "eta": eta, "steps": 9, "label": 1, "guidance_scale": 3.0, "seed": 1}
    second = {"sampler": sampler, "eta": eta, "steps": 6, "label": 2, "seed": 2}
    expected = alone(model, [*trajectories_of(model, "a", **first), *trajectories_of(model, "b", **second)])
    for k in range(10):
        arrivals = {0: trajectories_of(model, "a", **first)}
        arrivals.setdefault(k, []).extend(trajectories_of(model, "b", **second))
        assert together(Engine({"fake": model}, 8), arrivals) == expected


def test_equal_concurrent_requests_give_equal_images(
    model: Any, trajectories_of: Trajectories, turns_of: Turns
) -> None:
    """sglang#28502: five identical concurrent requests, five identical images."""
    engine = Engine({"fake": model}, 8)
    for k in range(5):
        engine.batch.admit(trajectories_of(model, f"job-{k}", sampler="ddpm", steps=6, label=3))
    assert len(set(finals(turns_of(engine)).values())) == 1


def test_image_k_is_the_image_of_seed_plus_k(model: Any, trajectories_of: Trajectories) -> None:
    many = alone(model, trajectories_of(model, "many", sampler="ddpm", seed=40, n=3))
    for k in range(3):
        assert many["many", k] == alone(model, trajectories_of(model, "one", sampler="ddpm", seed=40 + k))["one", 0]


@one_turn_at_a_time
def test_an_admitted_image_is_in_the_very_next_evaluation(model: Any, trajectories_of: Trajectories) -> None:
    engine = Engine({"fake": model}, 4)
    engine.batch.admit(trajectories_of(model, "a", label=0, steps=9))
    engine.step()
    engine.batch.admit(trajectories_of(model, "b", label=1, steps=9))
    turn = engine.step()
    assert model.calls == [[0], [0, 1]]
    assert {item.trajectory.job: item.step for item in turn.advanced} == {"a": 2, "b": 1}


@one_turn_at_a_time
def test_more_trajectories_than_slots_finish_in_order_of_arrival(
    model: Any, trajectories_of: Trajectories, turns_of: Turns
) -> None:
    engine = Engine({"fake": model}, 2)
    names = [f"job-{k}" for k in range(7)]
    for name in names:
        engine.batch.admit(trajectories_of(model, name, steps=3))
    done = [item.trajectory.job for turn in turns_of(engine) for item in turn.advanced if item.result is not None]
    assert done == names
    assert max(len(call) for call in model.calls) == 2


def test_later_jobs_do_not_starve_waiting_ones(model: Any, trajectories_of: Trajectories) -> None:
    """One slot, and a new job every turn."""
    engine = Engine({"fake": model}, 1)
    engine.batch.admit(trajectories_of(model, "first", steps=3))
    engine.batch.admit(trajectories_of(model, "second", steps=3))
    done: list[str] = []
    for k in range(16):
        engine.batch.admit(trajectories_of(model, f"later-{k}", steps=1))
        done += [item.trajectory.job for item in engine.step().advanced if item.result is not None]
    assert [job for job in done if not job.startswith("later")] == ["first", "second"]
    assert len(done) > 2


# Of five steps; the others draw none.
DRAWS = {
    "ddpm": 4,
    "euler_a": 4,
    "dpmpp_2m_sde": 4,
    "dpmpp_sde": 8,
    "langevin": 20,
    "pc": 8,
    "lcm": 4,
    "consistency": 4,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_is_drawn_for_the_start_and_for_the_rows_that_take_it_alone(
    sampler: str, model: Any, trajectories_of: Trajectories, turns_of: Turns
) -> None:
    """mathematics.md, trap 17: also not where a row's weight of noise is zero, as the last one's is."""
    (trajectory,) = trajectories_of(model, "a", sampler=sampler, steps=5, seed=11)
    engine = Engine({"fake": model}, 1)
    engine.batch.admit([trajectory])
    assert len(finals(turns_of(engine))) == 1
    reference = torch.Generator().manual_seed(11)
    for _ in range(1 + DRAWS.get(sampler, 0)):
        torch.randn(model.shape, generator=reference)
    assert torch.equal(trajectory.generator.get_state(), reference.get_state())


def test_an_empty_engine_does_nothing(model: Any) -> None:
    turn = Engine({"fake": model}, 4).step()
    assert (turn.rows, turn.advanced, turn.failed) == (0, [], [])
    assert model.calls == []


def neighbors(model: Any, trajectories_of: Trajectories) -> list[Trajectory]:
    """Images whose bytes a poisoned job in their batch must not change."""
    return [
        *trajectories_of(model, "calm", sampler="ddim", steps=6, label=0, n=2),
        *trajectories_of(model, "stirred", sampler="ddpm", steps=5, label=1, guidance_scale=4.0, seed=3),
        *trajectories_of(model, "mixed", sampler="ddim", eta=0.7, steps=7, label=None, seed=5),
    ]


POISONS = [
    ({"nan_class": 2}, "nan_output"),
    ({"failing_class": 2}, "evaluation_failed"),
    ({"failing_class": 2, "error": MemoryError()}, "out_of_memory"),
    ({"failing_class": 2, "error": torch.OutOfMemoryError("too large")}, "out_of_memory"),
]


@pytest.mark.parametrize(("poison", "code"), POISONS, ids=["nan", "raises", "memory", "device-memory"])
@pytest.mark.parametrize("turn", [0, 1, 3])
def test_a_poisoned_job_fails_alone_and_its_neighbors_are_unchanged(
    poison: dict[str, Any], code: str, turn: int, fake_model: Any, trajectories_of: Trajectories
) -> None:
    """However the batch is split to find the job that fails, each noise draw is taken once.

    (diffusers#9007, stable-diffusion-webui#13871.)
    """
    expected = alone(fake_model(), neighbors(fake_model(), trajectories_of))
    model = fake_model(**poison)
    engine = Engine({"fake": model}, 16)
    engine.batch.admit(neighbors(model, trajectories_of))
    found: Outcome = {}
    failed: list[tuple[str, str]] = []
    for k in range(20):
        if k == turn:
            engine.batch.admit(trajectories_of(model, "poisoned", sampler="ddpm", steps=8, label=2, n=2))
        outcome = engine.step()
        found |= finals(iter([outcome]))
        failed += [(trajectory.job, error.code) for trajectory, error in outcome.failed]
    assert set(failed) == {("poisoned", code)}
    assert found == expected
    assert not len(engine.batch)


def test_a_batch_too_large_for_the_device_is_evaluated_in_parts_and_no_job_fails(
    fake_model: Any, trajectories_of: Trajectories, turns_of: Turns
) -> None:
    class Small(fake_model):  # type: ignore[misc]
        def denoise(self, x: Tensor, *level: Any) -> Estimate:
            if len(x) > 2:
                raise torch.OutOfMemoryError("too large")
            estimate: Estimate = super().denoise(x, *level)
            return estimate

    expected = alone(fake_model(), neighbors(fake_model(), trajectories_of))
    engine = Engine({"fake": Small()}, 16)
    engine.batch.admit(neighbors(engine.models["fake"], trajectories_of))
    assert finals(turns_of(engine)) == expected


def test_a_failure_names_the_exception(fake_model: Any, trajectories_of: Trajectories) -> None:
    model = fake_model(failing_class=2, error=ValueError("no such kernel"))
    engine = Engine({"fake": model}, 4)
    engine.batch.admit(trajectories_of(model, label=2))
    (failure,) = engine.step().failed
    assert str(failure[1]) == "ValueError: no such kernel"


def test_a_failed_image_evicts_the_waiting_images_of_its_job(fake_model: Any, trajectories_of: Trajectories) -> None:
    model = fake_model(nan_class=2)
    engine = Engine({"fake": model}, 1)
    engine.batch.admit(trajectories_of(model, "poisoned", label=2, n=4))
    engine.batch.admit(trajectories_of(model, "next", label=0, steps=1))
    engine.step()
    assert [item.trajectory.job for item in engine.step().advanced] == ["next"]


@pytest.mark.parametrize("scale", [1.5, 7.5, 20.0])
def test_guidance_is_uncond_plus_scale_times_the_difference_of_two_evaluations(
    scale: float, fake_model: Any, trajectories_of: Trajectories
) -> None:
    """Ho & Salimans 2022, eq. 6: ε̃ = ε(∅) + s·(ε(c) − ε(∅)), in one batch of two rows."""
    model = fake_model(limit=None)
    (trajectory,) = trajectories_of(model, label=3, guidance_scale=scale, steps=5)
    x, plan = trajectory.registers[0].clone(), trajectory.plan
    level = [torch.tensor([float(table[0])]) for table in (plan.t, plan.alpha, plan.sigma)]
    with_label = model.denoise(x[None], *level, model.encode([ConditioningRequest(label=3)]))
    without = model.denoise(x[None], *level, model.encode([ConditioningRequest()]))
    merged = Estimate(
        without.x0 + scale * (with_label.x0 - without.x0),
        without.epsilon + scale * (with_label.epsilon - without.epsilon),
    )
    _, w_x0, w_epsilon, _ = (float(weight) for weight in plan.matrices[0, 0])
    engine = Engine({"fake": model}, 1)
    engine.batch.admit([trajectory])
    turn = engine.step()
    assert turn.rows == 2
    assert model.calls[-1] == [3, 4]
    torch.testing.assert_close(turn.advanced[0].denoised, merged.x0[0], rtol=1e-6, atol=1e-6)
    expected = w_x0 * merged.x0[0] + w_epsilon * merged.epsilon[0]
    torch.testing.assert_close(trajectory.registers[0], expected, rtol=1e-5, atol=1e-5)


@one_turn_at_a_time
def test_two_models_take_turns(fake_model: Any, trajectories_of: Trajectories, turns_of: Turns) -> None:
    one, two = fake_model("one"), fake_model("two", shape=(3, 2, 2))
    engine = Engine({"one": one, "two": two}, 8)
    engine.batch.admit(trajectories_of(one, "a", steps=4, n=3))
    engine.batch.admit(trajectories_of(two, "b", steps=4))
    served = [{item.trajectory.model for item in turn.advanced} for turn in turns_of(engine)]
    assert served == [{"one"}, {"two"}] * 4


def test_a_turn_reports_x_t_and_the_denoised_image(model: Any, trajectories_of: Trajectories) -> None:
    (trajectory,) = trajectories_of(model, label=1, steps=3)
    engine = Engine({"fake": model}, 1)
    engine.batch.admit([trajectory])
    for k in range(3):
        x, plan = trajectory.registers[0].clone(), trajectory.plan
        level = [torch.tensor([float(table[k])]) for table in (plan.t, plan.alpha, plan.sigma)]
        denoised = model.denoise(x[None], *level, model.encode([ConditioningRequest(label=1)])).x0[0].clamp(-1, 1)
        (item,) = engine.step().advanced
        assert as_bytes(item.x_t) == as_bytes(x)
        assert as_bytes(item.denoised) == as_bytes(denoised)
        assert (item.step, item.t, item.sigma) == (k + 1, plan.t[k], plan.sigma[k])
        assert (item.result is None) == (k < 2)
    # The last row of ddim ends at x̂_0 itself: α = 1, σ = 0.
    assert as_bytes(item.result) == as_bytes(item.denoised)


def two_register_plan(steps: int) -> Plan:
    """A sampler with a second register: it keeps the previous x̂_0, and mixes the two."""
    mixing = [[0.5, 0.125, 0.25, 0.0, 0.0625], [0.0, 0.0, 1.0, 0.0, 0.0]]
    level = np.linspace(0.2, 0.9, steps)
    return Plan(
        sampler="held",
        t=np.arange(steps, 0, -1, dtype=np.float64),
        alpha=level,
        sigma=np.sqrt(1 - level**2),
        matrices=np.asarray([mixing] * steps),
        step=tuple(range(1, steps + 1)),
        log_variance_range=np.zeros(steps),
    )


def two_register_trajectory(model: Any, seed: int) -> Trajectory:
    return Trajectory.begin(
        job=f"held-{seed}",
        index=0,
        model="fake",
        plan=two_register_plan(6),
        conditioning=model.encode([ConditioningRequest(label=1)]),
        guidance=Guidance(model.encode([ConditioningRequest()]), 2.0),
        seeds=Seeds(seed),
        shape=model.shape,
        device=model.device,
    )


def test_plans_with_more_registers_share_a_batch_with_plans_with_one(model: Any, trajectories_of: Trajectories) -> None:
    ddpm = {"sampler": "ddpm", "steps": 9, "label": 2}
    expected = alone(model, [two_register_trajectory(model, 3), *trajectories_of(model, "ddpm", **ddpm)])
    arrivals = {0: trajectories_of(model, "ddpm", **ddpm), 2: [two_register_trajectory(model, 3)]}
    assert together(Engine({"fake": model}, 4), arrivals) == expected


def test_a_model_conditioned_on_several_tensors_is_batched_like_any_other(
    fake_model: Any, trajectories_of: Trajectories
) -> None:
    """As a text-conditioned network has them: hidden states of every token next to the pooled vector."""

    class Conditioned(fake_model):  # type: ignore[misc]
        def encode(self, requests: Sequence[ConditioningRequest]) -> Conditioning:
            labels = super().encode(requests)["label"]
            hidden = labels.view(-1, 1, 1) + torch.arange(21.0).view(1, 7, 3)
            return Conditioning({"label": labels, "hidden_states": hidden, "pooled": hidden.sum(1)})

        def denoise(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, conditioning: Conditioning) -> Estimate:
            mean = conditioning["hidden_states"].sum(dim=(1, 2)) - conditioning["pooled"].sum(1) + conditioning["label"]
            estimate: Estimate = super().denoise(x, t, alpha, sigma, Conditioning({"label": mean}))
            return estimate

    fields = {"label": 1, "guidance_scale": 3.0, "steps": 4, "n": 2}
    expected = alone(fake_model(), trajectories_of(fake_model(), "a", **fields))
    model = Conditioned()
    arrivals = {0: trajectories_of(model, "a", **fields), 1: trajectories_of(model, "b", label=2, steps=5)}
    found = together(Engine({"fake": model}, 8), arrivals)
    assert {key: value for key, value in found.items() if key[0] == "a"} == expected
