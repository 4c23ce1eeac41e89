"""How good pictures are: FID, KID, precision and recall, class accuracy, in a feature space.

Every figure compares two sets of pictures that were both rounded to bytes. Where FID and KID
come from (torchmetrics) is said at each; `model.evaluation.quality` measures many of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from denoised.model.errors import EvaluationError
from denoised.model.evaluation.features import Features
from denoised.model.serving.pixel_model import PixelModel
from denoised.model.serving.sampling import sample

# Below these many pictures Inception's 2,048 features have a covariance of less than full rank; the bias of FID, which
# falls with 1/N, is then large in any space.
ENOUGH = 2_048
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1_000
NEIGHBOURS = 3
PRECISIONS = ("float32", "bfloat16")
INSTALL = "pip install 'denoised[train]'"
ROWS = 1_000  # of a matrix of distances at a time


@dataclass(frozen=True)
class Scores:
    """What is said of a set of pictures beside the reference.

    fid: ≥ 0, 0 for equal sets; kid, kid_std: mean and deviation over subsets, about 0 for equal distributions;
    precision, recall: 0 … 1; class_accuracy: 0 … 1, None where no classes were asked for.
    """

    fid: float
    kid: float
    kid_std: float
    precision: float
    recall: float
    class_accuracy: float | None = None


@dataclass(frozen=True)
class Generation:
    """How pictures are made: what `sample` takes, images an evaluation, the network's arithmetic."""

    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    guidance_scale: float = 1.0
    seed: int = 0
    batch: int = 64
    precision: str = "float32"


def need(*packages: str) -> None:
    """Raise an EvaluationError that says what to install where a package of the extra `train` is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise EvaluationError(f"{package} is not installed: {INSTALL}")


def spread(count: int, classes: int) -> list[int | None]:
    """Labels for `count` pictures, evenly over the classes; no labels where there are no classes."""
    return [k % classes if classes else None for k in range(count)]


def generate(
    model: PixelModel,
    labels: Sequence[int | None],
    generation: Generation,
    advanced: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Pictures for `labels`, picture k from seed + k, as the service rounds them: (N, C, H, W) uint8.

    advanced: called with the number of pictures after each batch of them.

    Raises:
        PlanError: for a sampler, steps or η that are not offered.
    """
    pictures: list[Tensor] = []
    for start in range(0, len(labels), generation.batch):
        part = labels[start : start + generation.batch]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=generation.precision == "bfloat16"):
            x0 = sample(
                model,
                part,
                seed=generation.seed + start,
                sampler=generation.sampler,
                steps=generation.steps,
                eta=generation.eta,
                guidance_scale=generation.guidance_scale,
            )
        pictures.append(torch.from_numpy(model.decode(x0)))
        advanced(len(part))
    return torch.cat(pictures).permute(0, 3, 1, 2).contiguous()


def uniform_noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Pictures (count, C, H, W) whose every byte is drawn uniformly: what no model can do worse than by much."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def score(found: Features, reference: Features, asked: Tensor | None = None, seed: int = 0) -> Scores:
    """All figures of `found` beside `reference`; asked: (N,) the classes that were asked for; seed: of KID's subsets.

    Raises:
        EvaluationError: for sets too small, or without torchmetrics.
    """
    for name, features in (("pictures", found), ("reference pictures", reference)):
        if len(features) <= NEIGHBOURS:
            raise EvaluationError(f"{len(features)} {name} are too few: at least {NEIGHBOURS + 1}")
    mean, deviation = kernel_distance(found.values, reference.values, seed)
    precision, recall = precision_recall(found.values, reference.values)
    return Scores(
        fid=frechet_distance(found.values, reference.values),
        kid=mean,
        kid_std=deviation,
        precision=precision,
        recall=recall,
        class_accuracy=float((found.classes == asked).double().mean()) if asked is not None else None,
    )


def frechet_distance(found: Tensor, reference: Tensor) -> float:
    """FID (Heusel et al. 2017, arXiv:1706.08500, eq. 6) of features (N, d) and (M, d), by torchmetrics in float64.

    Raises:
        EvaluationError: without torchmetrics.
    """
    need("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(reference.shape[1]))
    metric.update(reference.double(), real=True)
    metric.update(found.double(), real=False)
    return float(metric.compute())


def kernel_distance(found: Tensor, reference: Tensor, seed: int = 0) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018, arXiv:1801.01401, section 3), by torchmetrics: mean and deviation over subsets.

    The kernel is (x·y/d + 1)³, the estimator the unbiased one: about 0, and as often below, for equal distributions.

    Raises:
        EvaluationError: without torchmetrics.
    """
    need("torchmetrics")
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET_SIZE, len(found), len(reference))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_Given(reference.shape[1]), subsets=KID_SUBSETS, subset_size=size)
        metric.update(reference.double(), real=True)
        metric.update(found.double(), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def precision_recall(found: Tensor, reference: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1, 2) of features (N, d), (M, d).

    Precision: the share of `found` inside the manifold of `reference`; recall: the other way round. A manifold is all
    balls around its points that reach to their k-th neighbour.
    """
    found, reference = found.double(), reference.double()
    return _share_inside(found, reference, k), _share_inside(reference, found, k)


def _share_inside(points: Tensor, others: Tensor, k: int) -> float:
    nearest = [torch.cdist(part, others).topk(k + 1, dim=1, largest=False).values for part in others.split(ROWS)]
    reach = torch.cat(nearest)[:, -1]  # the first of them is the point itself
    inside = [(torch.cdist(part, others) <= reach).any(dim=1) for part in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


class _Given(nn.Module):
    """A feature network for torchmetrics that is given features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
