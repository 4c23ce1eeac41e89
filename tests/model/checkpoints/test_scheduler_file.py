"""scheduler_config.json: the class decides the defaults and the model's default sampler."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from denoised.model.checkpoints.card_file import CardFile, Defaults
from denoised.model.checkpoints.scheduler_file import DEFAULTS, fill_defaults, matching_sampler
from denoised.model.diffusion.grids import Grid
from denoised.model.diffusion.samplers import SAMPLERS
from denoised.model.diffusion.spacings import RatioSpacing
from denoised.model.errors import CheckpointError
from denoised.model.serving.loading import load_model

FILE = Path("scheduler_config.json")
Folder = Callable[..., Path]


def read(**raw: Any) -> dict[str, Any]:
    return fill_defaults(FILE, raw, SAMPLERS)


def load_with(folder: Path, **raw: Any) -> Any:
    (folder / "scheduler" / FILE).write_text(json.dumps(raw))
    return load_model(folder)


NEEDS_MORE = {
    "LMSDiscreteScheduler": "scheduling_lms_discrete.py",
    "DPMSolverSDEScheduler": "scheduling_dpmsolver_sde.py",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_keys_and_defaults_of_a_class_are_those_of_diffusers(name: str) -> None:
    file = NEEDS_MORE.get(name)
    assert DEFAULTS[name] == (defaults_in(file, name) if file else constructor_defaults(getattr(diffusers, name)))


def constructor_defaults(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key != "self"}


def defaults_in(file: str, name: str) -> dict[str, Any]:
    """Read from the source of a class that cannot be imported without scipy or torchsde."""
    source = Path(diffusers.__file__).parent / "schedulers" / file
    classes = {node.name: node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)}
    functions = [node for node in classes[name].body if isinstance(node, ast.FunctionDef)]
    (constructor,) = [node for node in functions if node.name == "__init__"]
    keys = [argument.arg for argument in constructor.args.args[1:]]
    return dict(zip(keys, map(ast.literal_eval, constructor.args.defaults), strict=True))


@pytest.mark.parametrize(
    ("name", "limit", "grid"),
    [
        ("DDPMScheduler", 1.0, Grid("leading")),
        ("DDIMScheduler", 1.0, Grid("leading")),
        ("PNDMScheduler", None, Grid("leading", set_alpha_to_one=False)),
        ("EulerDiscreteScheduler", None, Grid("linspace")),
        ("EulerAncestralDiscreteScheduler", None, Grid("linspace")),
        ("HeunDiscreteScheduler", None, Grid("linspace")),
        ("DPMSolverMultistepScheduler", None, Grid("linspace")),
        ("DPMSolverSinglestepScheduler", None, Grid("linspace")),
        ("UniPCMultistepScheduler", None, Grid("linspace")),
    ],
)
def test_a_file_with_a_class_name_only_means_the_defaults_of_that_class(
    folder: Folder, name: str, limit: float | None, grid: Grid
) -> None:
    model = load_with(folder(), _class_name=name)
    assert model.clipping.limit == limit
    assert model.grid == grid


def test_heuns_betas_are_not_those_of_the_others(folder: Folder) -> None:
    """σ/α at the last timestep: 25.146 for β .00085 … .012, 157.4073 for .0001 … .02."""
    root = folder()
    for name, expected in (("HeunDiscreteScheduler", 25.146), ("EulerDiscreteScheduler", 157.4073)):
        schedule = load_with(root, _class_name=name).schedule
        assert schedule.sigma[-1] / schedule.alpha[-1] == pytest.approx(expected, rel=1e-4)


def test_trained_betas_are_the_schedule(folder: Folder) -> None:
    betas, root = [0.1, 0.2, 0.5], folder()
    (root / "model_card.json").unlink()
    model = load_with(root, _class_name="DDPMScheduler", num_train_timesteps=3, trained_betas=betas)
    assert model.schedule.alpha**2 == pytest.approx([0.9, 0.72, 0.36])
    assert model.schedule.timesteps == 3
    theirs = diffusers.DDPMScheduler(num_train_timesteps=3, trained_betas=betas).alphas_cumprod
    assert np.allclose(model.schedule.alpha**2, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_spacing_of_levels_in_the_file_is_the_models(folder: Folder, name: str) -> None:
    root = folder()
    for spacing in ("karras", "exponential", "beta"):
        key = f"use_{spacing}_sigmas"
        assert load_with(root, _class_name=name, **{key: True}).grid.ratio_spacing == RatioSpacing(spacing)
        assert load_with(root, _class_name=name, **{key: False}).grid.ratio_spacing is None
        assert load_with(root, _class_name=name, **{key: None}).grid.ratio_spacing is None
    with pytest.raises(CheckpointError, match="use_karras_sigmas and use_beta_sigmas are both true"):
        load_with(root, _class_name=name, use_karras_sigmas=True, use_beta_sigmas=True)


def test_keys_of_another_class_are_ignored_as_in_diffusers(folder: Folder) -> None:
    """A DPM-Solver made from a DDIM's file keeps clip_sample in its file, but does not clip."""
    left_over = {"clip_sample": True, "skip_prk_steps": True, "interpolation_type": "log_linear"}
    assert load_with(folder(), _class_name="DPMSolverMultistepScheduler", **left_over).clipping.limit is None


def test_the_keys_that_only_ddpm_or_ddim_reads_are_honored_in_every_file() -> None:
    content = read(_class_name="EulerDiscreteScheduler", variance_type="fixed_large", set_alpha_to_one=False)
    assert (content["variance_type"], content["set_alpha_to_one"]) == ("fixed_large", False)
    assert read(_class_name="DPMSolverMultistepScheduler", variance_type=None)["variance_type"] == "fixed_small"


def test_the_grid_of_distillation_is_read_from_every_file(folder: Folder) -> None:
    """Only `lcm` and `tcd` read it; a file made from an LCM's keeps its keys."""
    keys = {"original_inference_steps": 100, "timestep_scaling": 5.0}
    for name in ("LCMScheduler", "TCDScheduler", "DDIMScheduler"):
        grid = load_with(folder(), _class_name=name, **keys).grid
        assert (grid.original_steps, grid.timestep_scaling) == (100, 5.0)
    with pytest.raises(CheckpointError, match="original_inference_steps = 0 is not a whole number of at least 1"):
        load_with(folder(), _class_name="LCMScheduler", original_inference_steps=0)


def test_tcd_ignores_clipping_as_diffusers_does(folder: Folder) -> None:
    clipped = {"clip_sample": True, "thresholding": True}
    assert load_with(folder(), _class_name="TCDScheduler", **clipped).clipping.limit is None
    assert load_with(folder(), _class_name="LCMScheduler", clip_sample=True).clipping.limit == 1.0


def test_a_key_of_the_first_releases_is_ignored() -> None:
    assert "tensor_format" not in read(_class_name="DDPMScheduler", tensor_format="pt")


@pytest.mark.parametrize(
    ("raw", "sampler"),
    [
        ({"_class_name": "DDPMScheduler"}, "ddpm"),
        ({"_class_name": "DDIMScheduler"}, "ddim"),
        ({"_class_name": "PNDMScheduler"}, None),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "plms"),
        ({"_class_name": "EulerDiscreteScheduler"}, "euler"),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_a"),
        ({"_class_name": "HeunDiscreteScheduler"}, "heun"),
        ({"_class_name": "LMSDiscreteScheduler"}, "lms"),
        ({"_class_name": "KDPM2DiscreteScheduler"}, "dpm_2"),
        ({"_class_name": "DPMSolverSDEScheduler"}, "dpmpp_sde"),
        ({"_class_name": "LCMScheduler"}, "lcm"),
        ({"_class_name": "TCDScheduler"}, "tcd"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "pc"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp_3m"),
        ({"_class_name": "UniPCMultistepScheduler"}, "unipc"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "unipc_3"),
    ],
)
def test_the_sampler_that_matches_the_class_is_the_models_default(
    folder: Folder, raw: dict[str, Any], sampler: str | None
) -> None:
    root = folder()
    (root / "model_card.json").unlink()
    assert matching_sampler(read(**raw)) == sampler
    assert load_with(root, **raw).card.default.sampler == (sampler if sampler in SAMPLERS else "ddim")


def test_the_sampler_of_the_card_takes_precedence(folder: Folder) -> None:
    root = folder()
    (root / "model_card.json").write_text(CardFile(default=Defaults(sampler="ddim")).model_dump_json())
    assert load_with(root, _class_name="EulerDiscreteScheduler").card.default.sampler == "ddim"


def test_without_a_card_the_default_steps_are_at_most_the_timesteps(folder: Folder) -> None:
    root = folder()
    (root / "model_card.json").unlink()
    assert load_with(root, _class_name="DDPMScheduler", num_train_timesteps=20).card.default.steps == 20


DPM = {"_class_name": "DPMSolverMultistepScheduler"}
EULER = {"_class_name": "EulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        ({**DPM, "algorithm_type": "dpmsolver"}, "algorithm_type = 'dpmsolver' is not supported"),
        ({**DPM, "solver_type": "heun"}, "solver_type = 'heun' is not supported"),
        ({**DPM, "solver_order": 1}, "solver_order = 1 is not supported (supported: 2)"),
        ({**DPM, "final_sigmas_type": "sigma_min"}, "final_sigmas_type = 'sigma_min' is not supported"),
        ({**DPM, "use_lu_lambdas": True}, "use_lu_lambdas = True is not supported (supported: False)"),
        ({**DPM, "use_flow_sigmas": True}, "use_flow_sigmas = True is not supported"),
        ({**DPM, "use_dynamic_shifting": True}, "use_dynamic_shifting = True is not supported"),
        ({**EULER, "interpolation_type": "log_linear"}, "interpolation_type = 'log_linear' is not supported"),
        ({**EULER, "timestep_type": "continuous"}, "timestep_type = 'continuous' is not supported"),
        ({**EULER, "sigma_max": 80.0}, "sigma_max = 80.0 is not supported (supported: null)"),
        ({**EULER, "shift": 3.0}, "key 'shift' is not understood"),
        ({"_class_name": ["DDPMScheduler"]}, "_class_name = ['DDPMScheduler'] is not supported"),
    ],
)
def test_a_key_that_would_change_the_image_is_refused_by_name(raw: dict[str, Any], cause: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(**raw)
    assert str(caught.value).startswith(f"{FILE}: {cause}")


def test_keys_that_do_not_change_the_image_are_not_refused() -> None:
    """The last step, to σ = 0, is of first order in DPM-Solver whatever these keys say."""
    for raw in ({"lower_order_final": False}, {"euler_at_final": True}, {"flow_shift": 3.0}, {"time_shift_type": "x"}):
        assert read(**DPM, **raw)["_class_name"] == DPM["_class_name"]


def test_a_class_without_a_matching_sampler_decides_the_noise_only() -> None:
    raw = {"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3, "use_exponential_sigmas": True}
    assert read(**raw)["beta_end"] == 0.02
