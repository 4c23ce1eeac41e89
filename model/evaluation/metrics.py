"""How good images are: FID, KID, precision and recall, class accuracy, all in a feature space.

Each metric compares the features of generated images with those of reference images; both were
rounded to bytes before. `model.evaluation.evaluator` produces the features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from denoised.model.errors import EvaluationError
from denoised.model.evaluation.features import Features
from denoised.model.evaluation.requirements import require_packages

# With fewer images than this, the covariance of Inception's 2,048 features does not have full rank. The bias of FID
# falls with 1/N (Bińkowski et al. 2018, section 4), so it is large for so few images in any feature space.
RELIABLE_COUNT = 2_048
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1_000
NEIGHBORS = 3
BLOCK_ROWS = 1_000  # rows of a distance matrix that are computed at a time


@dataclass(frozen=True)
class Scores:
    """The metrics of a set of images against reference images.

    fid: at least 0; 0 for equal sets.
    kid, kid_std: mean and standard deviation over subsets; about 0 for equal distributions.
    precision, recall: 0 … 1.
    class_accuracy: 0 … 1; None if no classes were requested.
    class_precision, class_recall: of the images of each class against the reference images of that class, by index;
        empty if classes are unknown, or some class has too few images. Sets of equal size are comparable.
    """

    fid: float
    kid: float
    kid_std: float
    precision: float
    recall: float
    class_accuracy: float | None = None
    class_precision: tuple[float, ...] = ()
    class_recall: tuple[float, ...] = ()


def compute_scores(
    generated: Features,
    reference: Features,
    requested: Tensor | None = None,
    seed: int = 0,
    reference_classes: Tensor | None = None,
) -> Scores:
    """All metrics of `generated` against `reference`.

    requested: (N,) the class requested for each generated image.
    seed: of KID's subsets.
    reference_classes: (M,) the class of each reference image.

    Raises:
        EvaluationError: if a set is too small, or torchmetrics is not installed.
    """
    for name, features in (("images", generated), ("reference images", reference)):
        if len(features) <= NEIGHBORS:
            raise EvaluationError(f"{len(features)} {name} are too few: at least {NEIGHBORS + 1}")
    kid, kid_std = kernel_distance(generated.values, reference.values, seed)
    precision, recall = precision_recall(generated.values, reference.values)
    by_class = (
        list(_scores_by_class(generated.values, reference.values, requested, reference_classes))
        if requested is not None and reference_classes is not None
        else []
    )
    return Scores(
        fid=frechet_distance(generated.values, reference.values),
        kid=kid,
        kid_std=kid_std,
        precision=precision,
        recall=recall,
        class_accuracy=float((generated.classes == requested).double().mean()) if requested is not None else None,
        class_precision=tuple(precision for precision, _ in by_class),
        class_recall=tuple(recall for _, recall in by_class),
    )


def frechet_distance(generated: Tensor, reference: Tensor) -> float:
    """FID of features (N, d) and (M, d), by torchmetrics in float64.

    ‖μ₁ − μ₂‖² + Tr(C₁ + C₂ − 2(C₁C₂)^½) of the two sets' means and covariances (Heusel et al. 2017,
    arXiv:1706.08500, eq. 6).

    Raises:
        EvaluationError: if torchmetrics is not installed.
    """
    require_packages("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_PrecomputedFeatures(reference.shape[1]))
    metric.update(reference.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(generated: Tensor, reference: Tensor, seed: int = 0) -> tuple[float, float]:
    """KID of features (N, d) and (M, d), by torchmetrics: mean and standard deviation over random subsets.

    The squared maximum mean discrepancy with the kernel k(x, y) = (x·y/d + 1)³ (Bińkowski et al. 2018,
    arXiv:1801.01401, section 3), by the unbiased estimator, which is as often below 0 as above for equal distributions.

    Raises:
        EvaluationError: if torchmetrics is not installed.
    """
    require_packages("torchmetrics")
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET_SIZE, len(generated), len(reference))
    # torchmetrics draws the subsets from torch's global generator: seed a copy, and leave the caller's as it was.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            feature=_PrecomputedFeatures(reference.shape[1]), subsets=KID_SUBSETS, subset_size=size
        )
        metric.update(reference.double(), real=True)
        metric.update(generated.double(), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def precision_recall(generated: Tensor, reference: Tensor, k: int = NEIGHBORS) -> tuple[float, float]:
    """Improved precision and recall of features (N, d), (M, d) (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1, 2).

    A set's manifold is approximated by balls around its points, each reaching to the point's k-th nearest neighbor.
    Precision is the fraction of generated points inside the reference manifold, recall the fraction of reference
    points inside the generated manifold.
    """
    generated, reference = generated.double(), reference.double()
    return _fraction_inside(generated, reference, k), _fraction_inside(reference, generated, k)


def _scores_by_class(
    generated: Tensor, reference: Tensor, requested: Tensor, reference_classes: Tensor
) -> Iterator[tuple[float, float]]:
    """Precision and recall of each class; none at all if one has too few images for a manifold."""
    pairs = [
        (generated[requested == k], reference[reference_classes == k]) for k in range(int(reference_classes.max()) + 1)
    ]
    if all(min(len(made), len(real)) > NEIGHBORS for made, real in pairs):
        yield from (precision_recall(made, real) for made, real in pairs)


def _fraction_inside(points: Tensor, manifold: Tensor, k: int) -> float:
    """The fraction of points (N, d) inside the manifold of the others (M, d); distances are computed in blocks."""
    # k + 1 neighbors, since the nearest point of the manifold to each of its points is the point itself.
    nearest = [
        torch.cdist(part, manifold).topk(k + 1, dim=1, largest=False).values for part in manifold.split(BLOCK_ROWS)
    ]
    radii = torch.cat(nearest)[:, -1]  # (M,)
    inside = [(torch.cdist(part, manifold) <= radii).any(dim=1) for part in points.split(BLOCK_ROWS)]
    return float(torch.cat(inside).double().mean())


class _PrecomputedFeatures(nn.Module):
    """Stands in for torchmetrics' feature network: it is given features and returns them unchanged."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
