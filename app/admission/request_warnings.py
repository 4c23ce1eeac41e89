"""What a client may not expect of a valid request."""

from __future__ import annotations

from collections.abc import Iterator

from denoised.jobs.record import RequestWarning
from denoised.jobs.request import SamplingRequest
from denoised.model.serving.card import ModelCard

LOW_START = 0.9  # of the model's timesteps; 10 leading steps of 1,000 start at 900


def find_warnings(request: SamplingRequest, card: ModelCard) -> Iterator[RequestWarning]:
    """The warnings of a request that `app.admission.validation` accepted."""
    yield from _leading_warnings(request, card)
    yield from _prompt_warnings(request)


def _prompt_warnings(request: SamplingRequest) -> Iterator[RequestWarning]:
    """Without guidance, the network is never evaluated with the negative prompt."""
    if request.negative_prompt is not None and not request.guided:
        yield RequestWarning("negative_prompt", "has no effect without guidance; a guidance_scale over 1 turns it on")


def _leading_warnings(request: SamplingRequest, card: ModelCard) -> Iterator[RequestWarning]:
    """Leading spacing starts below the last timestep, but from the same unit noise as every other run."""
    karras = card.grid.karras if request.karras is None else request.karras
    # The Karras levels of these samplers start at the highest noise level, whatever the spacing.
    ignores_spacing = karras and request.sampler in card.solver_samplers
    ignores_spacing |= not card.takes_spacing(request.sampler)
    if (request.spacing or card.grid.spacing) != "leading" or ignores_spacing:
        return
    first, last = card.first_leading_timestep(request.sampler, request.steps), card.timesteps - 1
    if first < LOW_START * card.timesteps:
        yield RequestWarning(
            "spacing",
            f"{request.steps} leading steps of {request.sampler} start at timestep {first} of 0 … {last}, where the "
            "model expects less noise than there is; trailing and linspace start at the last timestep",
        )
