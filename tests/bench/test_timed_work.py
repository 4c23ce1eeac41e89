"""The benchmark times the work it claims to time: convolutions, the engine's loop, the peers' pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.accelerator.loads import MEAN_TOLERANCE
from bench.load.workloads import REAL_TRAFFIC
from bench.peers.network import CompiledNetwork, Network, NetworkOptions
from bench.peers.pipeline import ClassConditionalDDIM, ImageParameters
from bench.results.sample_names import CHANNELS_LAST, CONTIGUOUS, DENOISED
from bench.sections import engine_loop
from bench.sections.convolutions import all_convolutions
from bench.sections.kernels import Networks, time_in_turns
from denoised.model.serving.loading import ZOO, load_model
from denoised.model.serving.sampling import sample


def test_the_convolutions_alone_compute_what_they_compute_in_the_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1))
    network.requires_grad_(False)
    x = torch.randn(3, 1, 28, 28)
    first, second = all_convolutions(network, x)()
    torch.testing.assert_close(first.to_dense(), network[0](x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second.to_dense(), network(x), rtol=1e-4, atol=1e-5)


def test_all_networks_compute_the_same() -> None:
    outputs = {name: evaluate() for name, evaluate in Networks().evaluations(2).items()}
    for name in (CONTIGUOUS, CHANNELS_LAST):
        torch.testing.assert_close(outputs[name], outputs[DENOISED], rtol=1e-3, atol=1e-4)


def test_every_convolution_of_the_network_is_timed() -> None:
    networks = Networks()
    network = networks.diffusers[CONTIGUOUS]
    expected = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert len(all_convolutions(network, *networks.inputs(2))()) == expected > 20


def test_subjects_take_turns() -> None:
    seen: list[str] = []
    times = time_in_turns({name: lambda name=name: seen.append(name) for name in "ab"}, rounds=2, seconds=0.0)  # type: ignore[misc]
    turns = "".join(name for k, name in enumerate(seen) if k == 0 or seen[k - 1] != name)
    assert turns == "ababab"
    assert [len(samples) for samples in times.values()] == [2, 2]


def test_the_engine_alone_has_a_plausible_rate() -> None:
    model = load_model(ZOO / "digits")
    rate = engine_loop.evaluations_per_second(model, REAL_TRAFFIC.requests(0), 4, warm_up=0.05, seconds=0.2)
    assert 0 < rate < 1e6


@pytest.fixture(scope="module")
def pipeline() -> ClassConditionalDDIM:
    return ClassConditionalDDIM(str(ZOO / "fashion-mnist"), NetworkOptions(), ())


def test_the_peers_make_the_same_images_as_denoised(pipeline: ClassConditionalDDIM) -> None:
    model = load_model(ZOO / "fashion-mnist")
    pictures = pipeline([ImageParameters(label, 40 + k, 10, 1.0) for k, label in enumerate((7, 3))])
    ours = sample(model, [7, 3], seed=40, sampler="ddim", steps=10)
    for picture, expected in zip(pictures, model.decode(ours), strict=True):
        apart = np.abs(np.asarray(picture, dtype=np.int64) - expected.squeeze(-1).astype(np.int64))
        assert apart.max() <= 1


def test_guidance_of_the_peers_is_neutral_at_scale_one_and_extrapolates_at_three(
    pipeline: ClassConditionalDDIM,
) -> None:
    x, t = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
    label = torch.tensor([4])
    with torch.inference_mode():
        plain = pipeline.network(x, t, label)
        without = pipeline.network(x, t, torch.tensor([10]))
        one, three = (pipeline._evaluate_guided(x, t, label, torch.full((1, 1, 1, 1), scale)) for scale in (1.0, 3.0))
    torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(three, 3 * plain - 2 * without, rtol=1e-4, atol=1e-4)


def test_the_peers_images_in_bfloat16_differ_by_less_than_a_gray_level_on_average(
    pipeline: ClassConditionalDDIM,
) -> None:
    rough = ClassConditionalDDIM(str(ZOO / "fashion-mnist"), NetworkOptions(precision="bfloat16"), ())
    pictures = [ImageParameters(7, 7, 10, 1.0)]
    given, exact, other = (
        np.asarray(images[0], dtype=np.int64)
        for images in (rough(pictures), pipeline(pictures), pipeline([ImageParameters(7, 107, 10, 1.0)]))
    )
    assert 0 < np.abs(given - exact).mean() < 1 < MEAN_TOLERANCE < np.abs(other - exact).mean()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # Inductor imports what torch deprecates
def test_a_compiled_network_is_exact_at_every_batch_size_and_compiles_only_its_own_sizes() -> None:
    network = Network(ZOO / "fashion-mnist", NetworkOptions())
    with torch.no_grad():
        compiled = CompiledNetwork(network, (2, 3), "cpu")
        with torch._dynamo.config.patch(error_on_recompile=True):
            for images in (1, 2, 3):
                x = torch.randn(images, 1, 28, 28, generator=torch.Generator().manual_seed(images))
                t, labels = torch.full((images,), 300), torch.arange(images)
                torch.testing.assert_close(compiled(x, t, labels), network(x, t, labels), rtol=1e-3, atol=1e-4)


def test_both_lock_files_agree_on_shared_packages(repository: Path) -> None:
    ours, peers = (
        dict(line.split(";")[0].strip().split("==") for line in path.read_text().splitlines() if "==" in line)
        for path in (repository / "requirements.lock", repository / "bench" / "peers" / "requirements.lock")
    )
    both = set(ours) & set(peers)
    assert both >= {"torch", "diffusers", "fastapi", "uvicorn", "pillow"}
    assert {name: ours[name] for name in both} == {name: peers[name] for name in both}
    assert "litserve" in peers
