"""What the network is conditioned on for the images of a job."""

from __future__ import annotations

from denoised.jobs.control import control_picture
from denoised.jobs.sampling_request import SamplingRequest
from denoised.model.serving.conditioning import ConditioningRequest, ControlRequest


def conditioning_requests(request: SamplingRequest) -> list[ConditioningRequest]:
    """What the network is conditioned on in each row of an evaluation: the request's own, then those that guidance
    compares it with."""
    asked = ConditioningRequest(
        label=request.label,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        loras={lora.name: lora.weight for lora in request.loras},
        width=request.width,
        height=request.height,
        clip_skip=request.clip_skip,
        emphasis=request.emphasis,
        guidance_scale=request.guidance_scale,
        has_image=request.image_guidance_scale is not None,
        controls=tuple(
            ControlRequest(each.name, control_picture(k), each.scale, each.start, each.end, each.guess_mode)
            for k, each in enumerate(request.controls)
            if each.scale
        ),
    )
    return [asked, *asked.compared()] if request.guided else [asked]
