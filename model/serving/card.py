"""The card of a served model: what a worker publishes about it, and what `GET /models` returns.

Imports no torch: the HTTP front end validates requests against it.
"""

from __future__ import annotations

from pydantic import BaseModel, computed_field

from denoised.model.checkpoints.card_file import Defaults, LearnedLevels, learned_sigmas
from denoised.model.checkpoints.labels import class_index, class_index_of_text, matching_classes
from denoised.model.checkpoints.text_to_image.prompt_guide import PromptGuide


class CardGrid(BaseModel):
    """Which noise levels a model visits where a request leaves it to the model.

    Attributes:
        spacing: `leading`, `trailing` or `linspace`.
        steps_offset: Added to the timesteps of leading spacing.
        karras: Whether its levels are those of Karras et al. 2022.
        ratio_spacing: Which of the other spacings its levels have instead of timesteps; None if none.
        sigma_min, sigma_max: The lowest and the highest noise level σ/α of training; None if unknown.
        ratios: Noise levels σ/α of training at equal distances from the first timestep to the last, rounded; for
            estimates.
        published: The spacings of the model's family whose levels others have published: falling, the last one the end.
        learned: The noise levels that were fitted to the model, for the spacing `learned`.
        consistency: The noise levels at which a consistency model was tuned, falling; a run of N steps visits the first
            N. Empty for other models.
        visited: Of the samplers that leave out the noisiest timesteps: how many remain, counted from 0. A run of more
            steps visits all.
    """

    spacing: str = "trailing"
    steps_offset: int = 0
    karras: bool = False
    ratio_spacing: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    ratios: list[float] = []
    published: dict[str, list[float]] = {}
    learned: list[LearnedLevels] = []
    consistency: list[float] = []
    visited: dict[str, int] = {}


class CardLatent(BaseModel):
    """The latents that a model denoises instead of pixels.

    Attributes:
        channels: Of the latents.
        downscale: Pixels along each side for one latent.
    """

    channels: int
    downscale: int


class CardLora(BaseModel):
    """A low-rank adapter that requests can name.

    Attributes:
        name: Of its file, without the ending.
        digest: Of the file.
    """

    name: str
    digest: str


class CardControl(BaseModel):
    """A ControlNet that requests can name.

    Attributes:
        name: Of its folder.
        digest: Of its config and weights.
        channels: Of its control picture: 3 (RGB) or 1 (gray).
    """

    name: str
    digest: str
    channels: int = 3


class CardLevel(BaseModel):
    """One resolution of a network.

    Attributes:
        height, width, channels: Of its tensors.
        attention: Whether its positions attend to each other.
        parameters: Of its layers.
        multiplications: Of its layers, in one evaluation of one image.
    """

    height: int
    width: int
    channels: int
    attention: bool
    parameters: int
    multiplications: int


class CardNetwork(BaseModel):
    """How a network is built.

    Attributes:
        parameters: Their number.
        levels: From the highest resolution to the lowest.
    """

    parameters: int
    levels: list[CardLevel]


class ModelCard(BaseModel):
    """A model as a live worker serves it (`GET /models`).

    Attributes:
        name: What requests call it.
        width, height, channels: Of its images, in pixels; the size if a request names none.
        labels: The names of its classes, in order; empty if it takes no label.
        prompts: Whether it takes a prompt.
        prompt_guide: Examples of prompts, and their parts to choose from (`PromptGuide`).
        max_clip_skip: How many layers of its text encoder a request may leave out.
        guidance_embedded: Whether the network takes the guidance scale as an input, so that an image is one row of a
            batch at any scale and has no negative prompt.
        pictures: What it does with a picture: `start` (its noise is added to it), `inpaint` (the network sees the part
            of it that is kept, too), `edit` (the network sees all of it); empty if it takes none.
        image_guidance: Whether guidance leads toward an input image, too: a guided image is three rows of a batch.
        size_multiple: What the width and the height of a request are multiples of; None if the size is fixed.
        max_pixels: The largest width·height of a request; None if the size is fixed.
        latent: What it denoises; None for a model of pixels.
        loras: The adapters that it offers, by name.
        controls: The ControlNets that it offers, by name.
        unconditional: Whether it can make an image without a label; guidance needs that too.
        timesteps: T of its training.
        prediction_type: What the network predicts: `epsilon`, `v_prediction` or `sample`.
        samplers: All samplers that it offers.
        sampler_descriptions: What each of them is good for, in plain words.
        eta_samplers, karras_samplers: The samplers that take `eta`, and those that take `karras`.
        spacings: The values of `spacing`.
        spacing_samplers: The samplers that take `spacing`; None if all do.
        solver_samplers: The samplers whose leading grid has N + 1 timesteps and leaves out the lowest.
        grid: The noise levels that it visits by default.
        stages: Evaluations per step of the samplers with more than one; the last step always takes one.
        extra_evaluations: Further evaluations that some samplers take in a run of more than one step.
        previews: The values of `preview` that its workers know.
        default: The request's defaults.
        max_images: In one request.
        numerics: What the last bits of its images depend on besides the request.
        digest: Of its weights, configs and classes (`model.checkpoints.digest`): equal for models that make the same
            pictures. Empty if unknown.
        description, data, license, credits: What its folder's card says (`CardFile`); empty if it says nothing.
        network: How its network is built; None if unknown, as for models of latents.
        distilled: Whether it was trained for a few steps without guidance; None if unknown.
    """

    name: str
    width: int
    height: int
    channels: int
    labels: list[str]
    prompts: bool = False
    prompt_guide: PromptGuide = PromptGuide()
    max_clip_skip: int = 0
    guidance_embedded: bool = False
    pictures: str = ""
    image_guidance: bool = False
    size_multiple: int | None = None
    max_pixels: int | None = None
    latent: CardLatent | None = None
    loras: list[CardLora] = []
    controls: list[CardControl] = []
    unconditional: bool = True
    timesteps: int
    prediction_type: str
    samplers: list[str]
    sampler_descriptions: dict[str, str] = {}
    eta_samplers: list[str]
    karras_samplers: list[str] = []
    spacings: list[str] = ["leading", "trailing", "linspace"]
    spacing_samplers: list[str] | None = None
    solver_samplers: list[str] = []
    grid: CardGrid = CardGrid()
    stages: dict[str, int] = {}
    extra_evaluations: dict[str, int] = {}
    previews: list[str] = ["x0", "xt", "both"]
    default: Defaults
    max_images: int
    numerics: str
    digest: str = ""
    description: str = ""
    data: str = ""
    license: str = ""
    credits: list[str] = []
    network: CardNetwork | None = None
    distilled: bool | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def inputs(self) -> list[str]:
        """The request fields that only some models take, as far as this one takes them."""
        taken = {
            "label": bool(self.labels),
            "prompt": self.prompts,
            "negative_prompt": self.prompts and not self.guidance_embedded,
            "loras": bool(self.loras),
            "controls": bool(self.controls),
            "width": self.size_multiple is not None,
            "height": self.size_multiple is not None,
            "clip_skip": self.max_clip_skip > 0,
            "emphasis": self.prompts,
            "image": bool(self.pictures),
            "strength": self.pictures in ("start", "inpaint"),
            "mask": self.pictures in ("start", "inpaint"),
            "image_guidance_scale": self.image_guidance,
        }
        return [name for name, takes in taken.items() if takes]

    def lora_digest(self, name: str) -> str | None:
        """The digest of an adapter; None if the model does not offer it."""
        return next((lora.digest for lora in self.loras if lora.name == name), None)

    def control(self, name: str) -> CardControl | None:
        """A ControlNet; None if the model does not offer it."""
        return next((control for control in self.controls if control.name == name), None)

    def takes_spacing(self, sampler: str) -> bool:
        """Whether a request with this sampler chooses its noise levels."""
        return self.spacing_samplers is None or sampler in self.spacing_samplers

    def takes_side(self, pixels: int) -> bool:
        """Whether an image may be so wide or high; see `max_pixels` for both together."""
        return self.size_multiple is not None and pixels > 0 and pixels % self.size_multiple == 0

    def learned_sigmas(self, sampler: str, steps: int) -> list[float] | None:
        """The levels of the spacing `learned`; None if none were fitted for this sampler and number of steps."""
        return learned_sigmas(self.grid.learned, sampler, steps)

    def class_index(self, label: str | int) -> int | None:
        """The index of the class that a label means (`model.checkpoints.labels`); None if it means none or several."""
        return class_index(label, self.labels)

    def class_index_of_text(self, text: str) -> int | None:
        """`class_index` for text that a person types: digits that are not a class name are an index."""
        return class_index_of_text(text, self.labels)

    def matching_labels(self, label: str) -> list[str]:
        """The names that an ambiguous label may mean."""
        return [self.labels[index] for index in matching_classes(label, self.labels)]

    def first_leading_timestep(self, sampler: str, steps: int) -> int:
        """The timestep at which a run of leading spacing starts; the same as in `model.diffusion.grids`."""
        visited = self.grid.visited.get(sampler, self.timesteps)
        total = visited if steps <= visited else self.timesteps
        stride = total // (steps + 1) if sampler in self.solver_samplers else 0
        if stride:
            return steps * stride + self.grid.steps_offset
        return (steps - 1) * (total // steps) + self.grid.steps_offset
