"""FID, KID, precision and recall: closed forms and worked examples."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoised.model.errors import EvaluationError
from denoised.model.evaluation.features import Features
from denoised.model.evaluation.image_generation import (
    GenerationSettings,
    balanced_labels,
    generate_images,
    uniform_noise,
)
from denoised.model.evaluation.metrics import compute_scores, frechet_distance, kernel_distance, precision_recall
from denoised.model.serving.loading import load_model
from denoised.model.serving.sampling import sample


def standard(count: int, dimensions: int, seed: int = 0) -> Tensor:
    """Features whose sample mean is 0 and whose sample covariance is the identity, to rounding errors."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    x = x - x.mean(dim=0)
    scale = torch.linalg.cholesky(torch.linalg.inv(x.T @ x / (count - 1)))
    return x @ scale


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_fid_of_two_unit_gaussians_is_their_squared_distance(shift: float) -> None:
    """‖δ‖² for N(0, I) and N(δ, I) (Dowson and Landau 1982)."""
    delta = torch.full((6,), shift, dtype=torch.float64)
    generated = frechet_distance(standard(500, 6) + delta, standard(400, 6, seed=1))
    assert generated == pytest.approx(6 * shift**2, abs=1e-6)


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_fid_of_a_wider_gaussian_is_d_times_the_squared_difference_of_scales(c: float) -> None:
    """d·(1 − c)² for N(0, I) and N(0, c²I)."""
    generated = frechet_distance(c * standard(500, 6), standard(400, 6, seed=1))
    assert generated == pytest.approx(6 * (1 - c) ** 2, abs=1e-6)


def test_fid_is_symmetric() -> None:
    a, b = standard(300, 4) * 2 + 1, standard(200, 4, seed=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_a_set_is_at_distance_zero_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With float32 features as a network computes them; one of them is always 0, as rectified features can be."""
    monkeypatch.setattr("denoised.model.evaluation.metrics.KID_SUBSETS", 20)
    features = torch.relu(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)))
    features[:, 3] = 0.0
    scores = compute_scores(Features(features, torch.zeros(4000)), Features(features, torch.zeros(4000)))
    assert abs(scores.fid) < 1e-6
    assert abs(scores.kid) < 3 * scores.kid_std
    assert (scores.precision, scores.recall) == (1.0, 1.0)


def test_kid_is_the_unbiased_estimate_with_the_cubic_kernel() -> None:
    """Subsets that are the whole set agree with the sum evaluated directly (Bińkowski et al. 2018, eq. 4)."""
    x, y = standard(12, 3) + 0.4, standard(12, 3, seed=1)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(12) for j in range(12)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (12 * 11)
    across = sum(kernel(x[i], y[j]) for i, j in pairs) / (12 * 12)
    mean, deviation = kernel_distance(x, y)
    assert mean == pytest.approx(within - 2 * across, rel=1e-9)
    assert deviation == pytest.approx(0.0, abs=1e-9)


def test_kid_draws_its_subsets_from_its_own_seed() -> None:
    x, y = standard(300, 3), standard(200, 3, seed=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = kernel_distance(x, y, seed=1)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is unchanged"
    torch.manual_seed(6)
    assert kernel_distance(x, y, seed=1) == first
    assert kernel_distance(x, y, seed=2) != first


def test_precision_and_recall_of_a_worked_example() -> None:
    """On a line with k = 1: balls of radius 1 around 0 and 1 and of 8 around 9 contain 0.5 and 8, not −2; conversely,
    round balls of 2.5 around 0.5 and −2 and of 7.5 around 8 hold all three."""
    reference = torch.tensor([[0.0], [1.0], [9.0]])
    generated = torch.tensor([[0.5], [-2.0], [8.0]])
    assert precision_recall(generated, reference, k=1) == (pytest.approx(2 / 3), 1.0)


def test_distant_sets_have_no_precision_and_no_recall() -> None:
    assert precision_recall(standard(50, 4) + 100, standard(60, 4, seed=1)) == (0.0, 0.0)


def test_one_good_image_repeated_has_high_precision_and_low_recall() -> None:
    reference = standard(200, 4)
    generated = reference[:1] + 1e-3 * standard(50, 4, seed=1)
    precision, recall = precision_recall(generated, reference)
    assert precision == 1.0
    assert recall <= 1 / 200


def test_the_block_size_of_distances_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = standard(70, 4) + 0.5, standard(60, 4, seed=1)
    whole = precision_recall(a, b)
    monkeypatch.setattr("denoised.model.evaluation.metrics.BLOCK_ROWS", 7)
    assert precision_recall(a, b) == whole


def test_class_accuracy_is_the_fraction_classified_as_requested() -> None:
    features = Features(standard(8, 2).float(), torch.tensor([0, 1, 1, 0, 0, 1, 0, 1]))
    requested = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    assert compute_scores(features, features, requested).class_accuracy == 0.75
    assert compute_scores(features, features).class_accuracy is None


def test_each_class_is_compared_with_the_reference_images_of_that_class() -> None:
    """Class 0 lies on its reference images, class 1 far away from them, though on those of class 0."""
    near = standard(20, 3)
    generated = Features(torch.cat([near, near]), torch.zeros(40))
    reference = Features(torch.cat([near, near + 100]), torch.zeros(40))
    classes = torch.arange(40) // 20
    scores = compute_scores(generated, reference, classes, reference_classes=classes)
    assert (scores.class_precision, scores.class_recall) == ((1.0, 0.0), (1.0, 0.0))
    assert compute_scores(generated, reference, classes).class_precision == ()
    few = torch.cat([torch.zeros(3), torch.ones(37)]).long()
    assert compute_scores(generated, reference, few, reference_classes=classes).class_recall == (), "3 of class 0"


def test_too_few_images_are_refused() -> None:
    few, enough = (Features(standard(n, 2).float(), torch.zeros(n)) for n in (3, 9))
    with pytest.raises(EvaluationError, match="3 images are too few: at least 4"):
        compute_scores(few, enough)
    with pytest.raises(EvaluationError, match="3 reference images are too few: at least 4"):
        compute_scores(enough, few)


def test_labels_are_distributed_evenly() -> None:
    assert balanced_labels(7, 3) == [0, 1, 2, 0, 1, 2, 0]
    assert balanced_labels(2, 0) == [None, None]


def test_images_are_those_the_model_decodes_at_any_batch_size(folder: Callable[..., Path]) -> None:
    model = load_model(folder())
    settings = GenerationSettings(sampler="euler_a", steps=3, guidance_scale=2.0, seed=40, batch=2)
    reported: list[int] = []
    generated = generate_images(model, balanced_labels(5, 3), settings, reported.append)
    assert generated.shape == (5, 1, 8, 8)
    assert generated.dtype == torch.uint8
    assert reported == [2, 2, 1]
    for k, label in enumerate(balanced_labels(5, 3)):
        alone = sample(model, [label], seed=40 + k, sampler="euler_a", steps=3, guidance_scale=2.0)
        assert (generated[k, 0].int() - torch.from_numpy(model.decode(alone)[0])[..., 0].int()).abs().max() <= 1
    whole = generate_images(model, balanced_labels(5, 3), dataclasses.replace(settings, batch=5))
    assert (whole.int() - generated.int()).abs().max() <= 1


def test_bfloat16_images_are_nearly_the_same(folder: Callable[..., Path]) -> None:
    model = load_model(folder())
    exact, rounded = (
        generate_images(model, balanced_labels(6, 3), GenerationSettings(steps=4, precision=p)).float()
        for p in ("float32", "bfloat16")
    )
    assert 0 < (exact - rounded).abs().mean() < 4


def test_noise_is_uniform_and_determined_by_its_seed() -> None:
    noise = uniform_noise(200, (1, 8, 8), seed=3)
    assert noise.shape == (200, 1, 8, 8)
    assert torch.equal(noise, uniform_noise(200, (1, 8, 8), seed=3))
    assert set(noise.unique().tolist()) == set(range(256))
    # The mean of 12,800 bytes is 127.5 within four times 73.9/√12800.
    assert noise.double().mean().item() == pytest.approx(127.5, abs=2.6)


def test_a_missing_package_is_reported_in_one_line_that_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torchmetrics"] = sys.modules["matplotlib"] = None
import torch
from denoised.model.errors import EvaluationError
from denoised.model.evaluation.metrics import frechet_distance, kernel_distance
from denoised.model.evaluation.quality_plot import write_plot
x = torch.eye(4)
for call in (lambda: frechet_distance(x, x), lambda: kernel_distance(x, x), lambda: write_plot(None, "", [])):
    try:
        call()
    except EvaluationError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "torchmetrics is not installed: pip install 'denoised[train]'",
        "torchmetrics is not installed: pip install 'denoised[train]'",
        "matplotlib is not installed: pip install 'denoised[train]'",
    ]
