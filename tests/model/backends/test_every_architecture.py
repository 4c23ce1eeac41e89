"""Every backend computes the function of the served network, for every architecture that the loader accepts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoised.model.backends import selection
from denoised.model.backends.backend import Backend, EagerBackend
from denoised.model.backends.comparison import ReferenceRows
from denoised.model.backends.graphs import GraphedUNet, evaluate_in_precision, in_precision
from denoised.model.backends.native.network import NativeUNet
from denoised.model.backends.numerics import PRECISIONS, Precision
from denoised.model.backends.packed import can_pack, pack
from denoised.model.backends.tile_size import Tiling
from denoised.model.checkpoints.card_file import CardFile
from denoised.model.checkpoints.writing import save_model
from denoised.model.errors import KernelError
from denoised.model.networks.unet.score_network import ScoreUNet
from denoised.model.networks.unet.unet import UNet
from denoised.model.networks.unet.unet_config import UNetConfig
from denoised.model.serving.loading import load_for_serving, load_model
from denoised.model.serving.sampling import sample
from denoised.worker import model_loading
from tests.model.networks.unet.configs import ATTENTION, NCSNPP, RESNETS
from tests.requirements import HAS_COMPILER, needs_compiler

PLAIN = replace(ATTENTION, num_class_embeds=None)
NCSNPP_OF_DIFFUSERS = replace(
    NCSNPP,
    num_class_embeds=None,
    center_input_sample=True,
    mid_block_scale_factor=math.sqrt(2),
    norm_eps=1e-6,
)
ARCHITECTURES: dict[str, UNetConfig] = {
    "plain": PLAIN,
    "classes": ATTENTION,
    "numbers as classes": replace(ATTENTION, class_embed_type="timestep", num_class_embeds=None),
    "learned variance": replace(PLAIN, out_channels=6),
    "learned variance and classes": replace(ATTENTION, out_channels=6),
    "gray": replace(ATTENTION, in_channels=1, out_channels=1),
    "fourier time": replace(ATTENTION, time_embedding_type="fourier"),
    "learned time": replace(ATTENTION, time_embedding_type="learned", num_train_timesteps=1000),
    "learned time and numbers": replace(
        ATTENTION, time_embedding_type="learned", num_train_timesteps=1000, class_embed_type="timestep"
    ),
    "sinusoids of Ho et al.": replace(PLAIN, flip_sin_to_cos=False, freq_shift=1),
    "another width of the embedding": replace(PLAIN, time_embedding_dim=48),
    "scale and shift": replace(ATTENTION, resnet_time_scale_shift="scale_shift"),
    "resnet resampling": RESNETS,
    "resnet resampling, plain": replace(RESNETS, class_embed_type=None, resnet_time_scale_shift="default"),
    "uneven padding": replace(ATTENTION, downsample_padding=0),
    "centered input": replace(ATTENTION, center_input_sample=True),
    "no middle block": replace(ATTENTION, mid_block_type=None),
    "no middle attention": replace(ATTENTION, add_attention=False),
    "norm before the middle attention": replace(ATTENTION, attn_norm_num_groups=4),
    "scaled middle block": replace(ATTENTION, mid_block_scale_factor=math.sqrt(2)),
    "one head": replace(ATTENTION, attention_head_dim=None),
    "small heads": replace(ATTENTION, attention_head_dim=5),
    "odd channels": replace(ATTENTION, block_out_channels=(8, 24), attention_head_dim=4, norm_num_groups=4),
    "one level": replace(
        ATTENTION, block_out_channels=(16,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    ),
    "three layers": replace(PLAIN, layers_per_block=3),
    "attention everywhere": replace(
        PLAIN, down_block_types=("AttnDownBlock2D",) * 2, up_block_types=("AttnUpBlock2D",) * 2
    ),
    "larger epsilon": replace(ATTENTION, norm_eps=1e-2),
    **{f"activation {name}": replace(ATTENTION, act_fn=name) for name in ("swish", "mish", "gelu", "relu")},
    "skip blocks": NCSNPP,
    "skip blocks of diffusers": NCSNPP_OF_DIFFUSERS,
    "skip blocks, positional time": replace(NCSNPP, time_embedding_type="positional"),
    "skip blocks, then plain ones": replace(
        NCSNPP,
        norm_num_groups=8,
        down_block_types=("SkipDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "SkipUpBlock2D"),
    ),
}
# (σ_min, σ_max, T): a score network around the U-Net (`ScoreSdeVeScheduler`).
SCORES: dict[str, tuple[UNetConfig, tuple[float, float, int]]] = {
    "ncsnpp": (NCSNPP_OF_DIFFUSERS, (0.01, 1348.0, 2000)),
    "ncsnpp with classes": (NCSNPP, (0.01, 50.0, 200)),
    "ncsnpp, one timestep": (NCSNPP_OF_DIFFUSERS, (0.01, 50.0, 1)),
    "a score by positional time": (PLAIN, (0.01, 50.0, 200)),
    "a score with scale and shift": (replace(RESNETS, time_embedding_type="fourier"), (0.01, 50.0, 200)),
}
CASES: dict[str, tuple[UNetConfig, tuple[float, float, int] | None]] = {
    **{name: (config, None) for name, config in ARCHITECTURES.items()},
    **SCORES,
}
EVERY = pytest.mark.parametrize("name", CASES)
PACKS = can_pack(torch.device("cpu"))
Rows = tuple[Tensor, Tensor, Tensor | None]


@cache
def network(name: str) -> UNet:
    config, variance_exploding = CASES[name]
    torch.manual_seed(0)
    unet = UNet(config) if variance_exploding is None else ScoreUNet(config, *variance_exploding)
    return unet.eval().requires_grad_(False)


def last_timestep(name: str) -> float:
    variance_exploding = CASES[name][1]
    return 999.0 if variance_exploding is None else variance_exploding[2] - 1.0


def rows(name: str, count: int = 4) -> Rows:
    """Noise at levels from the first to the last timestep, with every label."""
    unet = network(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, unet.config.in_channels, 16, 16, generator=generator)
    t = torch.linspace(0, last_timestep(name), count)
    if unet.config.time_embedding_type == "fourier" and not isinstance(unet, ScoreUNet):
        t = t + 0.5  # features of log t
    numbers = 1 + torch.arange(count) % 3  # with Fourier features, the number 0 has no logarithm
    classes = numbers if unet.config.class_embed_type == "timestep" else torch.arange(count) % 4
    return x, t, classes if unet.class_embedding is not None else None


def backends(name: str) -> dict[str, Callable[[], Backend]]:
    unet, shape = network(name), (network(name).config.in_channels, 16, 16)
    return {
        **({"native": lambda: NativeUNet(unet, shape)} if HAS_COMPILER else {}),
        **({"packed": lambda: EagerBackend(pack(deepcopy(unet)))} if PACKS else {}),
    }


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest error of a row, relative to its norm."""
    assert expected.isfinite().all()
    return float(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())


@EVERY
@torch.inference_mode()
def test_every_cpu_backend_passes_the_comparison_at_load_and_computes_the_function_of_the_network(name: str) -> None:
    x, t, label = rows(name)
    unet = network(name)
    expected = unet(x, t, label)
    reference = ReferenceRows.of(unet, (unet.config.in_channels, 16, 16), int(last_timestep(name)) + 1)
    assert reference.t[0] == 0
    assert reference.t[-1] in (0, last_timestep(name))
    if not backends(name):
        pytest.skip("there is no C compiler here, and torch cannot pack weights for this processor")
    for which, build in backends(name).items():
        backend = build()
        reference.check(backend, which)
        for _ in range(2):  # the second time from its recorded graph, if it has one
            together = backend(x, t, label)
            assert relative(together, expected) < 1e-4, which
        assert relative(backend.begin(x, t, label)(), expected) < 1e-4, which
        for k in range(len(x)):
            one = backend(x[k : k + 1], t[k : k + 1], label[k : k + 1] if label is not None else None)
            assert torch.equal(one, together[k : k + 1]), (which, "the same bits alone")


@pytest.mark.parametrize(
    ("name", "precision", "dtype"),
    [
        # Architectures take turns; the other half of the pairs are slow tests.
        pytest.param(name, precision, dtype, marks=() if k % 2 == half else pytest.mark.slow)
        for k, name in enumerate(CASES)
        for half, (precision, dtype) in enumerate([("bfloat16", torch.bfloat16), ("float16", torch.float16)])
    ],
)
@torch.inference_mode()
def test_layers_in_half_precision_compute_the_function_of_the_network(
    name: str, precision: Precision, dtype: torch.dtype
) -> None:
    """The arithmetic of the graphs in half precision, without the graph: on a CPU."""
    x, t, label = rows(name)
    unet = network(name)
    copy = in_precision(unet, precision)
    assert copy.conv_in.weight.dtype == dtype
    assert unet.conv_in.weight.dtype == torch.float32
    found, expected = evaluate_in_precision(copy, x, t, label), unet(x, t, label)
    assert found.dtype == torch.float32
    assert relative(found, expected) < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("precision", PRECISIONS)
@EVERY
@torch.inference_mode()
def test_every_recorded_graph_computes_the_function_of_the_network(name: str, precision: Precision) -> None:
    x, t, label = (part.cuda() if part is not None else None for part in rows(name))
    assert x is not None
    assert t is not None
    unet, timesteps = deepcopy(network(name)).cuda(), int(last_timestep(name)) + 1
    graphed = GraphedUNet(unet, (unet.config.in_channels, 16, 16), timesteps, precision, Tiling(4, 2))
    expected = network(name)(*rows(name))
    assert (
        relative(graphed(x, t, label).cpu(), expected)
        < {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 0.1, "float16": 1e-2}[precision]
    )
    selected = selection.select_backend(unet, (unet.config.in_channels, 16, 16), timesteps, "cuda", precision)
    assert selected.fallback is None
    assert selected.numerics.startswith("graphs-16/")


class Another(EagerBackend):
    """A backend that forgets what is around the layers, at some of the levels."""

    def __init__(self, unet: UNet, forget: Callable[[Tensor, Tensor], Tensor], in_background: bool = False) -> None:
        super().__init__(unet)
        self._forget = forget
        self._in_background = in_background

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        output = super().__call__(x, t, label)
        return output if self._in_background else self._forget(output, t)

    def begin(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Callable[[], Tensor]:
        output = self._forget(EagerBackend.__call__(self, x, t, label), t)
        return lambda: output


WRONG: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scaled": lambda h, t: 1.01 * h,
    "shifted": lambda h, t: h + 0.01,
    "not a number": lambda h, t: h * torch.nan,
    "not a number at the end": lambda h, t: torch.where((t < 1)[:, None, None, None], torch.nan, h),
    "wrong at the last level": lambda h, t: torch.where((t > 998)[:, None, None, None], -h, h),
    "zero": lambda h, t: 0 * h,
}


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_backend_that_computes_another_function_is_found(wrong: str, in_background: bool) -> None:
    unet = network("classes")
    reference = ReferenceRows.of(unet, (3, 16, 16), 1000)
    with pytest.raises(KernelError, match="the native backend computes another function than the network: at t = "):
        reference.check(Another(unet, WRONG[wrong], in_background), "native")


def test_a_network_without_finite_output_is_compared_where_it_has_one() -> None:
    """With Fourier features of t itself, timestep 0 has no logarithm: the network's own fault, not the backend's."""
    unet = network("fourier time")
    reference = ReferenceRows.of(unet, (3, 16, 16), 1000)
    assert not reference.output[0].isfinite().any()
    reference.check(EagerBackend(unet), "eager")
    with pytest.raises(KernelError):
        reference.check(Another(unet, WRONG["scaled"]), "eager")


@pytest.fixture
def score_folder(tmp_path: Path, stir: Callable[..., None]) -> Path:
    """A folder as diffusers writes it for NCSN++."""
    unet = UNet(replace(NCSNPP_OF_DIFFUSERS, sample_size=16))
    stir(unet)
    scheduler = {
        "_class_name": "ScoreSdeVeScheduler",
        "num_train_timesteps": 200,
        "sigma_min": 0.01,
        "sigma_max": 50.0,
        "sampling_eps": 1e-5,
        "snr": 0.15,
        "correct_steps": 1,
    }
    save_model(tmp_path / "score", unet.config, unet.state_dict(), scheduler, CardFile())
    return tmp_path / "score"


@needs_compiler
def test_a_score_network_makes_the_same_picture_on_the_fastest_backend(score_folder: Path) -> None:
    """Was NaN, or another picture: the native backend left out the scaling by σ around the layers."""
    eager, served = load_model(score_folder), load_for_serving(score_folder)
    assert served.fallback is None
    expected, found = (sample(model, [None], seed=3, sampler="pc", steps=10) for model in (eager, served.model))
    assert expected.isfinite().all()
    assert relative(found, expected) < 1e-3


@pytest.mark.parametrize("broken", [("NativeUNet",), ("NativeUNet", "pack")])
def test_a_wrong_backend_is_refused_at_load_and_the_next_one_serves(
    broken: tuple[str, ...], folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder()
    expected = sample(load_model(path), [0], seed=1, steps=3)

    def forgetful(unet: UNet, *_: Any) -> Any:
        copy = deepcopy(unet)
        copy.conv_out.weight *= 1.5
        return EagerBackend(copy) if len(_) else copy

    for name in broken:
        monkeypatch.setattr(selection, name, forgetful)
    served = load_for_serving(path)
    kind = "eager" if "pack" in broken or not PACKS else "packed"
    assert served.model.card.numerics.startswith(f"{kind}/")
    assert served.fallback is not None
    assert "the native backend computes another function than the network" in served.fallback
    assert ("the packed backend computes another" in served.fallback) == ("pack" in broken and PACKS)
    assert relative(sample(served.model, [0], seed=1, steps=3), expected) < 1e-3


def test_a_refused_backend_is_named_in_the_log(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_loading, "bundled", list)
    monkeypatch.setattr(selection, "NativeUNet", lambda unet, shape: Another(unet, WRONG["zero"]))
    with caplog.at_level(logging.WARNING):
        model_loading.load_models([folder()], device="cpu", max_images=1)
    assert "boots: the native backend computes another function than the network: at t = 0" in caplog.text
