"""The requests that benchmarks send, in a reproducible order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

CLASSES = 10
GUIDANCE = 2.0
IMAGE_SIZE = (28, 28)  # of the bundled model


@dataclass(frozen=True)
class ImageRequest:
    """A request for one image.

    label, prompt: what it shows: a class, or a sentence for a model that takes one.
    model: by name; None for the first that takes the request.
    """

    steps: int
    guided: bool
    label: int
    seed: int
    prompt: str | None = None
    model: str | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the network, one image each; guidance doubles them."""
        return self.steps * (2 if self.guided else 1)

    def body(self) -> dict[str, Any]:
        """The JSON body, which all servers of the benchmark understand."""
        scale = GUIDANCE if self.guided else 1.0
        content = {"label": self.label} if self.prompt is None else {"prompt": self.prompt}
        model = {"model": self.model} if self.model is not None else {}
        return {
            **model,
            **content,
            "seed": self.seed,
            "steps": self.steps,
            "guidance_scale": scale,
            "sampler": "ddim",
        }


@dataclass(frozen=True)
class Workload:
    """An endless sequence of requests.

    step_counts: each cycle contains each of these once, in random order.
    guided_every: one request in this many is guided; 0 means none.
    prompts: the sentences of a text-to-image model, in turn; none for a model with classes.
    model: see `ImageRequest`.
    """

    name: str
    step_counts: tuple[int, ...]
    guided_every: int = 0
    prompts: tuple[str, ...] = ()
    model: str | None = None

    def requests(self, seed: int) -> Iterator[ImageRequest]:
        """The requests, without end; the same for the same seed."""
        rng = random.Random(seed)
        while True:
            cycle = list(self.step_counts)
            rng.shuffle(cycle)
            for k, steps in enumerate(cycle):
                guided = bool(self.guided_every) and k % self.guided_every == 0
                label, image_seed = rng.randrange(CLASSES), rng.randrange(2**31)
                prompt = self.prompts[image_seed % len(self.prompts)] if self.prompts else None
                yield ImageRequest(steps, guided, label, image_seed, prompt, self.model)

    def with_prompts(self, prompts: tuple[str, ...], model: str) -> Workload:
        """The same step counts for a text-to-image model."""
        return replace(self, prompts=prompts, model=model)

    @property
    def rows_per_turn(self) -> float:
        """Batch rows that a running request occupies, averaged over a long time: 1, or 2 with guidance."""
        requests = list(islice(self.requests(0), 20 * len(self.step_counts)))
        return sum(r.evaluations for r in requests) / sum(r.steps for r in requests)


THREE_STEP_COUNTS = Workload("three step counts", (10, 20, 50))
REAL_TRAFFIC = Workload("real traffic", tuple(range(5, 61)), guided_every=4)
TWENTY_STEPS = Workload("20 steps", (20,))
SHORT_JOBS = Workload("one or two steps", (1, 2))
