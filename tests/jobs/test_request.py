"""The request's definition: what follows from it, and what keeps old pictures' bytes as they are."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from denoised.jobs.control import Control
from denoised.jobs.lora import Lora
from denoised.jobs.numerics import computation, digest_in, with_format
from denoised.jobs.request import FIELDS, PictureRequest, RequestFields
from denoised.jobs.sampling_request import DEFAULTS, SamplingRequest, without_defaults

REQUEST = SamplingRequest(
    model="shoes", label=0, label_name="sneaker", seed=7, sampler="ddim", steps=4, guidance_scale=1.0
)


def test_every_field_has_a_meaning_and_a_place_in_the_resolved_request() -> None:
    assert list(FIELDS) == list(get_type_hints(RequestFields))
    assert {each.name for each in fields(SamplingRequest)} == {
        *(FIELDS.keys() - {"variation"}),  # it stands for other fields
        "label_name",
        "stages",
        "extra_evaluations",
        "guidance_embedded",
        "guided_evaluations",
        "task",
        "t",
        "sigma",
        "adds_noise",
        "x_t",
    }
    assert all(field.meaning for field in FIELDS.values())


def test_the_documented_fields_are_the_fields(repository: Path) -> None:
    section = (repository / "docs/api.md").read_text().split("### Fields")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(FIELDS)


def test_a_picture_carries_only_these_fields_if_all_others_have_their_defaults() -> None:
    """A field more in this list would change the bytes of every older request."""
    always = ["model", "label", "seed", "sampler", "steps", "guidance_scale", "guidance_rescale", "numerics"]
    assert list(REQUEST.parameters(0, "fake")) == always


def test_a_picture_carries_every_field_that_differs_from_its_default() -> None:
    names = {each.name for each in fields(PictureRequest)} & set(DEFAULTS) - {"n"}
    assert names >= {"eta", "spacing", "karras", "format"}
    plain = names - {"loras", "controls"}
    others: dict[str, Any] = dict.fromkeys(plain, "other")
    lists: dict[str, Any] = {"loras": (Lora("ink", 0.5, "1a"),), "controls": (Control("edges", "sha256:2b", 0.5),)}
    carried = replace(REQUEST, **others, **lists).parameters(0, "fake")
    assert {name: carried[name] for name in plain} == others
    assert carried["loras"] == [{"name": "ink", "weight": 0.5, "digest": "1a"}]
    values = {"scale": 0.5, "start": 0.0, "end": 1.0, "guess_mode": False, "digest": ""}
    assert carried["controls"] == [{"name": "edges", "image": "sha256:2b", **values}]


def test_a_default_is_no_difference_whether_it_is_given_or_left_out() -> None:
    assert without_defaults({"n": 1, "eta": 0.0, "format": "png", "preview": "x0", "seed": None}) == {}
    assert without_defaults({"n": 2, "karras": False, "seed": 0}) == {"n": 2, "karras": False, "seed": 0}


def test_numerics_name_the_computation_and_the_format() -> None:
    assert computation(with_format("eager/torch-2.13.0")) == computation("eager/torch-2.13.0") == "eager/torch-2.13.0"
    assert with_format("eager") == "eager/format-2"
    assert with_format("eager", "1a2b") == "eager/model-1a2b/format-2"
    assert computation("eager/model-1a2b/format-2") == computation("eager/format-2") == "eager"
    assert digest_in("eager/torch-2.13.0/model-1a2b/format-2") == "1a2b"
    assert digest_in("eager/torch-2.13.0/format-2") is None, "of an earlier version"
