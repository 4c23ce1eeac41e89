"""`parameters` and `info` in the response of `txt2img`, as AUTOMATIC1111's web UI has them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from denoised.app.compat.a1111.a1111_schemas import RANDOM_SEED, Txt2ImgRequest
from denoised.app.compat.a1111.checkpoints import short_digest
from denoised.app.compat.a1111.controlnet_units import BALANCED, CONTROL_FIRST, without_pictures
from denoised.app.compat.a1111.refusals import ignored_fields
from denoised.app.compat.a1111.sampler_names import AUTOMATIC, find_schedule, split_name, web_ui_name
from denoised.jobs.control import Control
from denoised.jobs.record import JobRecord

VERSION = "denoised"


def generation_info(body: Txt2ImgRequest, record: JobRecord) -> dict[str, Any]:
    """The object that `info` carries as JSON. record: of a job that has succeeded."""
    request, images = record.request, record.images
    count, first = len(images), images[0]
    negative_prompt, seeds = request.negative_prompt or "", [image.seed for image in images]
    sampler = web_ui_name(request.sampler)
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * count,
        "negative_prompt": negative_prompt,
        "all_negative_prompts": [negative_prompt] * count,
        "seed": first.seed,
        "all_seeds": seeds,
        "subseed": first.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": sampler,
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request.model,
        "sd_model_hash": short_digest(record.digest),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.strength if request.starts_from_picture else None,
        "extra_generation_params": {"Schedule type": schedule} if (schedule := _schedule_label(body)) else {},
        "index_of_first_image": 0,
        "infotexts": [_infotext(body, record, image.seed) for image in images],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(record.created_at)),
        "clip_skip": request.clip_skip + 1,
        "is_using_inpainting_conditioning": request.mask is not None,
        "version": VERSION,
        "job": record.id,
        "ignored": ignored_fields(body.extra),
        "warnings": [f"{warning.field}: {warning.message}" for warning in record.warnings],
    }


def echoed_parameters(body: Txt2ImgRequest, record: JobRecord) -> dict[str, Any]:
    """The request; fields that it leaves out, or gives as null, have the values that were used.

    NaN and infinities, which JSON cannot express, become null in fields that nothing here reads.
    """
    request, image = record.request, record.images[0]
    used = {
        "negative_prompt": request.negative_prompt or "",
        "seed": RANDOM_SEED,
        "sampler_name": web_ui_name(request.sampler),
        "sampler_index": web_ui_name(request.sampler),
        "scheduler": AUTOMATIC,
        "steps": request.steps,
        "cfg_scale": request.guidance_scale,
        "width": image.width,
        "height": image.height,
        "batch_size": 1,
        "n_iter": 1,
        "eta": request.eta,
        "send_images": True,
        "override_settings": {},
        "alwayson_scripts": {},
    }
    members = body.model_dump(exclude={"init_images", "mask"})
    members["alwayson_scripts"] = without_pictures(body.alwayson_scripts or {})
    given = {name: value for name, value in members.items() if value is not None or name not in used}
    fields: dict[str, Any] = json.loads(json.dumps({**used, **given}), parse_constant=lambda name: None)
    return fields


def _infotext(body: Txt2ImgRequest, record: JobRecord, seed: int) -> str:
    """The settings of a picture as the text that the web UI writes under it and can read again."""
    request, first = record.request, record.images[0]
    settings: list[tuple[str, object]] = [
        ("Steps", request.steps),
        ("Sampler", web_ui_name(request.sampler)),
        ("Schedule type", _schedule_label(body)),
        ("CFG scale", f"{request.guidance_scale:g}"),
        ("Seed", seed),
        ("Size", f"{first.width}x{first.height}"),
        ("Denoising strength", f"{request.strength:g}" if request.starts_from_picture else None),
        ("Model hash", short_digest(record.digest)),
        ("Model", request.model),
        ("Clip skip", request.clip_skip + 1 if request.clip_skip else None),
        *((f"ControlNet {k}", _unit(each)) for k, each in enumerate(request.controls)),
        ("Version", VERSION),
    ]
    lines = [body.prompt, f"Negative prompt: {request.negative_prompt}" if request.negative_prompt else ""]
    return "\n".join([*filter(None, lines), _joined(settings)])


def _joined(settings: Sequence[tuple[str, object]]) -> str:
    return ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings if value is not None)


def _unit(control: Control) -> str:
    """A ControlNet as the web UI's extension writes it into a picture's settings."""
    mode = CONTROL_FIRST if control.guess_mode else BALANCED
    interval = f"Guidance Start: {control.start:g}, Guidance End: {control.end:g}"
    return f"Module: none, Model: {control.name}, Weight: {control.scale:g}, {interval}, Control Mode: {mode}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(each in text for each in ",:\n") else text


def _schedule_label(body: Txt2ImgRequest) -> str | None:
    """The schedule that the request names; None if it leaves it to the sampler."""
    schedule = split_name(body.sampler_name or body.sampler_index or "")[1] or find_schedule(body.scheduler or "")
    return schedule.label if schedule is not None and schedule.fields else None
