"""A request of `img2img` in the fields of `POST /generate`."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

from PIL import ImageOps

from denoised.app.compat.a1111.a1111_schemas import Img2ImgRequest
from denoised.app.compat.a1111.refusals import Errors, refuse
from denoised.app.compat.a1111.translation import translate
from denoised.app.http.errors import InvalidRequest
from denoised.app.http.validation_errors import format_value
from denoised.app.services import Services
from denoised.jobs.errors import PictureError
from denoised.jobs.picture_reading import decode
from denoised.jobs.request import RequestFields
from denoised.model.serving.card import ModelCard

STRENGTH = 0.75  # the web UI's default
# What is served of fields with several values, the web UI's default among them where it is; the others are refused.
SERVED: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "resize_mode": ("resizing other than to cover and crop", (None, 0, 1)),
    "initial_noise_multiplier": ("noise of another strength", (None, 0, 1)),
}
SERVED_WITH_MASK: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "inpaint_full_res": ("inpainting of the masked part alone, enlarged", (None, False, 0)),
    "inpainting_fill": ("filling the masked part before it is redrawn", (1,)),
    # 4 is what the web UI and its clients send unasked. A mask that is blurred and then read as black or white is
    # nearly the mask itself.
    "mask_blur": ("a mask with soft edges", (None, 0, 4)),
}


def translate_img2img(body: Img2ImgRequest, card: ModelCard, services: Services) -> RequestFields:
    """The same request in the fields of `POST /generate`. Blocking.

    Raises:
        InvalidRequest: when a field asks for what is not served, or does not fit the model.
    """
    refuse(list(_errors(body)))
    fields: RequestFields = {**translate(body, card), "image": body.start_picture}
    if body.mask is not None:
        fields["mask"] = _inverted(body.mask, services) if body.inpainting_mask_invert else body.mask
    if "strength" in card.inputs:
        fields["strength"] = STRENGTH if body.denoising_strength is None else body.denoising_strength
    if card.image_guidance and body.image_cfg_scale is not None:
        fields["image_guidance_scale"] = body.image_cfg_scale
    return fields


def _errors(body: Img2ImgRequest) -> Errors:
    served = {**SERVED, **(SERVED_WITH_MASK if body.mask is not None else {})}
    for name, (what, allowed) in served.items():
        value = body.extra.get(name)
        if value not in allowed:
            names = ", ".join(format_value(each) for each in allowed if each is not None)
            yield name, f"{format_value(value)} was given, but {what} is not served (allowed: {names})"


def _inverted(mask: str, services: Services) -> str:
    """A mask with black and white exchanged."""
    try:
        with services.picture_slots.open():
            image = decode(base64.b64decode(mask.rpartition("base64,")[2], validate=True))
            out = io.BytesIO()
            ImageOps.invert(image.convert("L")).save(out, "png")
    except (PictureError, ValueError) as error:
        raise InvalidRequest([("mask", str(error))]) from error
    return base64.b64encode(out.getvalue()).decode()
