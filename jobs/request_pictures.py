"""The pictures of a request by name, those of its ControlNets too, and its array.

Imports only the standard library, `jobs.request`, `jobs.task_request` and `jobs.control`, because the client shares
this file with the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from denoised.jobs.control import Control, control_picture
from denoised.jobs.request import FIELDS
from denoised.jobs.task_request import ARRAY

PICTURE_FIELDS = tuple(name for name, field in FIELDS.items() if field.is_picture)
"""The fields whose value is a picture."""


def pictures_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures of a request by name: its fields, and those of its ControlNets (`control_picture`); its array, too.

    fields: of the request, by name; a ControlNet is an object or a `Control`.
    """
    named = {name: fields[name] for name in (*PICTURE_FIELDS, ARRAY) if fields.get(name) is not None}
    controls = [each.image if isinstance(each, Control) else each["image"] for each in fields.get("controls") or ()]
    return {**named, **{control_picture(k): image for k, image in enumerate(controls)}}


def with_pictures(fields: Mapping[str, Any], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request with other values for its pictures, by the names of `pictures_of`."""
    own = {name: value for name, value in pictures.items() if name in (*PICTURE_FIELDS, ARRAY)}
    controls = [
        {**each, "image": pictures.get(control_picture(k), each.get("image"))}
        for k, each in enumerate(fields.get("controls") or ())
    ]
    return {**fields, **own, **({"controls": controls} if controls else {})}
