"""What a client may not expect of a valid request."""

from __future__ import annotations

from collections.abc import Iterator

from denoised.app.admission.noise_levels import STARTS_OF_ITS_OWN, spacing_of_levels
from denoised.jobs.record import RequestWarning
from denoised.jobs.request_choices import TIMESTEP_SPACINGS
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.card import ModelCard

LOW_START = 0.9  # of the model's timesteps; 10 leading steps of 1,000 start at 900


def find_warnings(request: SamplingRequest, card: ModelCard) -> Iterator[RequestWarning]:
    """The warnings of a request that `app.admission.validation` accepted."""
    yield from _leading_warnings(request, card)
    yield from _prompt_warnings(request)
    yield from _interval_warnings(request, card)
    yield from _distilled_warnings(request, card)


def unserved_warning(card: ModelCard) -> RequestWarning:
    """The warning of a job that is accepted for a model without a live worker."""
    return RequestWarning("model", f"no worker serves {card.name} now; the job waits until one starts")


def _prompt_warnings(request: SamplingRequest) -> Iterator[RequestWarning]:
    """Without guidance, the network is never evaluated with the negative prompt."""
    if request.negative_prompt is not None and not request.guided:
        yield RequestWarning("negative_prompt", "has no effect without guidance; a guidance_scale over 1 turns it on")


def _interval_warnings(request: SamplingRequest, card: ModelCard) -> Iterator[RequestWarning]:
    """An interval that holds none of the model's noise levels turns guidance off, and one that holds all is none."""
    lowest, highest = card.grid.sigma_min, card.grid.sigma_max
    if request.guidance_interval is None or lowest is None or highest is None:
        return
    low, high = request.guidance_interval
    if high < lowest or low >= highest:
        yield RequestWarning(
            "guidance_interval",
            f"[{low:g}, {high:g}] lies outside the noise levels {lowest:g} … {highest:g} of {card.name}, so there is "
            "no guidance",
        )


def _distilled_warnings(request: SamplingRequest, card: ModelCard) -> Iterator[RequestWarning]:
    """The samplers of distilled models jump to the end of a trajectory at each step, which others cannot."""
    if card.distilled is False and not request.loras and not card.takes_spacing(request.sampler):
        yield RequestWarning(
            "sampler",
            f"{request.sampler} is for models that were distilled for it (LCM, TCD), which {card.name} is not; its "
            f"own sampler is {card.default.sampler}",
        )


def _timestep_spacing(request: SamplingRequest, card: ModelCard) -> str:
    return request.spacing if request.spacing in TIMESTEP_SPACINGS else card.grid.spacing


def _leading_warnings(request: SamplingRequest, card: ModelCard) -> Iterator[RequestWarning]:
    """Leading spacing starts below the last timestep, but from the same unit noise as every other run."""
    if _timestep_spacing(request, card) != "leading" or not card.takes_spacing(request.sampler):
        return
    levels = spacing_of_levels(request.spacing, request.karras, card.grid)
    # Where the first level does not depend on the timesteps: it is named, or it is the highest of the model.
    named = request.sigmas is not None or request.sigma_max is not None or levels in STARTS_OF_ITS_OWN
    if named or (levels is not None and request.sampler in card.solver_samplers):
        return
    first, last = card.first_leading_timestep(request.sampler, request.steps), card.timesteps - 1
    if first < LOW_START * card.timesteps:
        yield RequestWarning(
            "spacing",
            f"{request.steps} leading steps of {request.sampler} start at timestep {first} of 0 … {last}, where the "
            "model expects less noise than there is; trailing and linspace start at the last timestep",
        )
