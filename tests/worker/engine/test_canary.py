"""A model's canary: the same bits while the device is sound, an error when it fails or computes something else."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from denoised.model.serving.loading import ZOO, load_for_serving
from denoised.model.serving.protocol import ServedModel
from denoised.worker.device_health import DeviceHealth
from denoised.worker.engine.canary import Canary
from denoised.worker.errors import DeviceError, TrajectoryError
from tests.fake_model import FakeModel


def recorded(model: ServedModel) -> Canary:
    canary = Canary.record(model)
    assert canary is not None
    return canary


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


def fail_from_now_on(model: FakeModel, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(model, "denoise", failing)


def change_from_now_on(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit in the last place of one number."""
    denoise = model.denoise

    def changed(x: Tensor, *rest: Any) -> Any:
        estimate = denoise(x, *rest)
        estimate.epsilon[0, 0, 0, 0] = torch.nextafter(estimate.epsilon[0, 0, 0, 0], torch.tensor(9.0))
        return estimate

    monkeypatch.setattr(model, "denoise", changed)


def test_a_sound_device_repeats_the_canary_of_every_bundled_model() -> None:
    for folder in [ZOO / name for name in ("digits", "emoji", "fashion-mnist-consistency")]:
        model = load_for_serving(folder, device="cpu").model
        canary = recorded(model)
        canary.check()
        assert canary.expected is not None
        assert len(canary.expected) == 2 * 4 * torch.Size(model.shape).numel()


def test_one_other_bit_is_another_result(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = recorded(model)
    change_from_now_on(model, monkeypatch)
    with pytest.raises(DeviceError, match="device cpu computes another result for 'fake'") as raised:
        canary.check()
    assert raised.value.has_wrong_results


def test_an_error_is_reported_with_its_first_line(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = recorded(model)
    fail_from_now_on(model, monkeypatch, RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors …"))
    with pytest.raises(DeviceError) as raised:
        canary.check()
    assert str(raised.value) == (
        "device cpu does not evaluate 'fake' any more (RuntimeError: CUDA error: unspecified launch failure)"
    )
    assert not raised.value.has_wrong_results


def test_a_model_that_cannot_be_evaluated_has_no_canary(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_from_now_on(model, monkeypatch, MemoryError())
    assert Canary.record(model) is None


def test_only_errors_that_may_be_the_devices_are_asked_about(model: FakeModel) -> None:
    """A known error needs no answer, so no engine has to be there."""
    device = DeviceHealth([recorded(model)])
    assert device.is_sound_after(MemoryError())
    assert device.is_sound_after(TrajectoryError("nan_output", "…"))
    assert DeviceHealth().is_sound_after(RuntimeError())


@pytest.mark.parametrize("broken", [False, True])
def test_another_thread_waits_for_the_engines_answer(
    broken: bool, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = threading.Event()
    device = DeviceHealth([recorded(model)], woken.set)
    if broken:
        change_from_now_on(model, monkeypatch)
    answers: list[bool] = []
    other = threading.Thread(target=lambda: answers.append(device.is_sound_after(RuntimeError())))
    device.answer()
    other.start()
    assert woken.wait(10)
    assert not answers
    if broken:
        with pytest.raises(DeviceError):
            device.answer()
    else:
        device.answer()
    other.join(10)
    assert answers == [not broken]
    assert device.is_sound_after(MemoryError()) is not broken


def test_a_stopped_engine_answers_nobody_and_holds_nobody_up(model: FakeModel) -> None:
    device = DeviceHealth([recorded(model)])
    device.close()
    assert device.is_sound_after(RuntimeError())


def test_three_different_jobs_in_a_row_are_needed(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    device = DeviceHealth([recorded(model)])
    change_from_now_on(model, monkeypatch)
    device.answer(["a", "b"])
    device.answer(["b"])
    device.record_success()
    device.answer(["c"])
    device.answer(["d"])
    with pytest.raises(DeviceError):
        device.answer(["e"])
