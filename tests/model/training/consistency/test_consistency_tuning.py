"""Consistency tuning: the teacher's trajectories against a closed form, what a network learns of them, and the runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from denoised.model.checkpoints.card_file import read_card_file
from denoised.model.errors import TrainingError
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import load_model
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import sample
from denoised.model.training.consistency.consistency_config import ConsistencyConfig
from denoised.model.training.consistency.consistency_tuner import ConsistencyTuner
from denoised.model.training.consistency.trajectories import Teacher, Trajectories
from denoised.model.training.consistency.trajectory_store import draw_trajectories
from tests.model_commands import run_command
from tests.text_pipelines import save_pipeline

MU, S = 0.2, 0.5
# Down to ρ = .01, where the last step's E[x_0|x] is the end of the trajectory to 1/(2·50²) of the deviation.
DEFAULT = {"sampler": "unipc_3", "steps": 24, "spacing": "geometric", "sigma_min": 0.0101, "sigma_max": 40.0}


@pytest.fixture
def teacher_folder(folder: Callable[..., Path]) -> Callable[..., Path]:
    """`teacher_folder(**default)`: a model of three classes whose card has these defaults."""

    def write(**default: Any) -> Path:
        path = folder(labels=("dark", "gray", "light"), prediction_type="v_prediction", clip_sample=False)
        card = json.loads((path / "model_card.json").read_text())
        card |= {"default": {"sampler": "unipc_3", "steps": 4, **default}, "description": "Stripes.", "license": "MIT"}
        (path / "model_card.json").write_text(json.dumps(card))
        return path

    return write


def knowing_gaussian(model: PixelModel) -> PixelModel:
    """The model with the exact network for data N(μ, s²): v = α·ε − σ·x_0 of E[x_0|x] and E[ε|x]."""

    class Exact:
        min_pipelined_images = None

        def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            alpha, sigma = (
                torch.from_numpy(level).float().view(-1, 1, 1, 1)
                for level in model.schedule.levels_at(t.double().numpy())
            )
            v = alpha**2 * S**2 + sigma**2
            x0, epsilon = (alpha * S**2 * x + sigma**2 * MU) / v, sigma * (x - alpha * MU) / v
            return alpha * epsilon - sigma * x0

    model.backend = Exact()  # type: ignore[assignment]
    return model


def end_of(states: Tensor, ratio: float) -> Tensor:
    """Where the ODE ends: (x̄ − μ)/√(s² + ρ²) is kept, with x̄ = x/α = x·√(1 + ρ²)."""
    return MU + (states * math.sqrt(1 + ratio**2) - MU) * S / math.sqrt(S**2 + ratio**2)


def test_a_trajectory_ends_where_the_ode_of_the_data_ends(teacher_folder: Callable[..., Path]) -> None:
    teacher = Teacher(knowing_gaussian(load_model(teacher_folder(**DEFAULT))), middle=1.1)
    drawn = teacher.draw([0, 1, 2], seed=5)
    first, middle = teacher.levels.ratios
    assert (first, middle) == (pytest.approx(40.0), pytest.approx(1.1, rel=0.2))
    assert drawn.labels.tolist() == [0, 1, 2]
    for level, ratio in enumerate((first, middle)):
        # float16 keeps eleven bits of x; dividing by α and the solver's own error add to that.
        torch.testing.assert_close(drawn.ends.float(), end_of(drawn.states[:, level].float(), ratio), rtol=0, atol=0.01)
    unit = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(5 + k)) for k in range(3)])
    assert torch.equal(drawn.states[:, 0], unit.half()), "image k starts from the noise of seed + k"


def test_the_second_jump_is_from_the_nearest_level(teacher_folder: Callable[..., Path]) -> None:
    model = load_model(teacher_folder(**DEFAULT | {"steps": 6, "sigma_min": 0.1}))
    ratios = [40.0 / 400 ** (k / 5) for k in range(6)]
    for wanted, row in ((1.1, 3), (1.9, 3), (2.1, 2), (1e9, 1), (1e-9, 5)):
        assert Teacher(model, wanted).levels.ratios == pytest.approx([40.0, ratios[row]])


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ({"sampler": "ddpm", "steps": 4}, "the card's sampler is ddpm, which draws noise: a trajectory has none"),
        ({"sampler": "unipc_3", "steps": 1}, "the card's plan has one step: a teacher needs levels between"),
    ],
)
def test_a_teacher_without_trajectories_is_refused(
    teacher_folder: Callable[..., Path], default: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=f"^{message}"):
        Teacher(load_model(teacher_folder(**default)), 1.1)


def gaussian_trajectories(count: int, ratios: list[float], seed: int) -> Trajectories:
    """Trajectories of the closed form, from states of the right distribution."""
    generator = torch.Generator().manual_seed(seed)
    ends = MU + S * torch.randn(count, 1, 8, 8, generator=generator)
    # Backward along the ODE: x̄ − μ = (x_0 − μ)·√(s² + ρ²)/s, then x = α·x̄.
    states = [(MU + (ends - MU) * math.sqrt(S**2 + r**2) / S) / math.sqrt(1 + r**2) for r in ratios]
    return Trajectories(torch.arange(count) % 3, torch.stack(states, dim=1).half(), ends.half())


def test_a_tiny_network_learns_the_consistency_function(
    teacher_folder: Callable[..., Path], conditional: UNetConfig
) -> None:
    """Held against the closed form on trajectories that it has not seen."""
    levels = Teacher(load_model(teacher_folder(**DEFAULT)), 1.1).levels
    config = ConsistencyConfig(images=9_600, learning_rate=5e-3, precision="float32")
    torch.manual_seed(0)
    learner = ConsistencyTuner(
        config, UNet(conditional), "v_prediction", levels, gaussian_trajectories(600, levels.ratios, 1)
    )
    unseen = gaussian_trajectories(64, levels.ratios, 2)

    def errors() -> list[float]:
        learner.net.load_state_dict(learner.ema)
        with torch.no_grad():
            indices = [torch.full((64,), level) for level in range(len(levels))]
            jumped = [learner.jump(unseen.states[:, int(k[0])].float(), k, unseen.labels) for k in indices]
        return [float((each - unseen.ends.float()).square().mean().sqrt()) for each in jumped]

    while learner.step < learner.steps:
        learner.train_step()
    # E[x_0|x], the network's start in a real run, would be off by about s at the first level, and by .12 at the second.
    first, second = errors()
    assert first < 0.3 * S
    assert second < 0.12


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., Any]:
    """`tune(model, *options)`: run the command with small settings into the folder `run`."""
    small = ["--trajectories", 12, "--batch", 8, "--warmup", 0, "--precision", "float32", "--lr-schedule", "constant"]

    def run(model: Path, *options: object, out: str = "run") -> Any:
        given = [] if "--resume" in options else small
        return run_command("tune-consistency", model, "--out", tmp_path / out, "--threads", 1, *given, *options)

    return run


def test_the_command_writes_a_model_that_only_jumps(
    teacher_folder: Callable[..., Path], tune: Callable[..., Any], tmp_path: Path
) -> None:
    teacher = teacher_folder(guidance_scale=2.0)
    done = tune(teacher, "--images", 32)
    assert done.exit_code == 0, done.output
    assert "12 trajectories · jumps from noise levels " in done.output
    card = read_card_file(tmp_path / "run/model")
    assert card.description == "Stripes. Tuned to draw in 2 evaluations or fewer."
    assert (card.labels, card.license, card.unconditional) == (["dark", "gray", "light"], "MIT", False)
    model = load_model(tmp_path / "run/model")
    assert model.card.samplers == ["consistency"]
    assert (model.card.default.sampler, model.card.default.steps) == ("consistency", 2)
    assert model.card.distilled is True
    pictures = [sample(model, [0, 2], seed=3, sampler="consistency", steps=steps) for steps in (1, 2)]
    assert all(each.isfinite().all() for each in pictures)
    assert not torch.equal(*pictures)
    assert card.training["model_digest"] == load_model(teacher).card.digest != model.card.digest
    assert list((tmp_path / "run/samples").glob("*.png"))


def test_a_stopped_run_continues_to_the_same_bits(
    teacher_folder: Callable[..., Path], tune: Callable[..., Any], tmp_path: Path
) -> None:
    teacher = teacher_folder()
    assert tune(teacher, "--images", 64, out="whole").exit_code == 0
    assert tune(teacher, "--images", 32).exit_code == 0
    again = tune(teacher, "--images", 64, "--resume")
    assert again.exit_code == 0, again.output
    whole, parts = (load_file(tmp_path / name / "checkpoints/step-00000008.safetensors") for name in ("whole", "run"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_trajectories_are_drawn_once_and_a_broken_file_again(
    teacher_folder: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = Teacher(load_model(teacher_folder()), 1.1)
    first = draw_trajectories(tmp_path / "drawn", teacher, 12)
    (file,) = (tmp_path / "drawn").iterdir()
    written = file.stat().st_mtime_ns
    counted: list[int] = []
    again = draw_trajectories(tmp_path / "drawn", teacher, 12, counted.append)
    assert (file.stat().st_mtime_ns, counted) == (written, [12])
    file.write_bytes(file.read_bytes()[:100])
    mended = draw_trajectories(tmp_path / "drawn", teacher, 12)
    for name in ("labels", "states", "ends"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert torch.equal(getattr(first, name), getattr(mended, name))


def test_what_cannot_be_tuned_is_refused_in_one_line(
    teacher_folder: Callable[..., Path], tune: Callable[..., Any], tmp_path: Path
) -> None:
    teacher = teacher_folder()
    assert tune(teacher, "--images", 8).exit_code == 0
    tuned, other, text = tmp_path / "run/model", tmp_path / "boots", tmp_path / "text"
    card = json.loads((other / "model_card.json").read_text())
    save_pipeline(text)
    cases = [
        ((tuned,), "the card's sampler is consistency, which draws noise: a trajectory has none"),
        ((text,), f"{text} is a text-to-image model: consistency tuning is for models of pixels"),
        ((teacher, "--trajectories", 0), "trajectories = 0 is out of range (at least 1)"),
    ]
    for arguments, message in cases:
        refused = tune(*arguments, out="other")
        assert (refused.exit_code, refused.stderr) == (1, f"denoised tune-consistency: {message}\n")
    assert "already holds a run: continue it with --resume" in tune(teacher).stderr
    (other / "model_card.json").write_text(json.dumps({**card, "labels": ["a", "b", "c"]}))
    assert "MODEL is not that of the run to resume (digest " in tune(teacher, "--resume").stderr
