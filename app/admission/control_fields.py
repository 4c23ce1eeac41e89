"""The ControlNets of a request, checked against the model's card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from denoised.app.http.validation_errors import format_value, join_names
from denoised.jobs.control import Control, ControlFields
from denoised.model.serving.card import ModelCard


def control_errors(given: Sequence[ControlFields], card: ModelCard) -> Iterator[tuple[str, str]]:
    """ControlNets that the model does not offer, or not with these weights, and fractions of steps that do not rise."""
    if not card.controls:
        return  # `app.admission.validation` refuses the field by name
    for k, control in enumerate(given):
        name, offered = control["name"], card.control(control["name"])
        digest = control.get("digest")
        if offered is None:
            names = join_names([each.name for each in card.controls])
            yield f"controls.{k}.name", f"{format_value(name)} is not offered by {card.name} (offered: {names})"
        elif digest not in (None, offered.digest):
            served = f"other weights are served under the name {format_value(name)} (served: {offered.digest})"
            yield f"controls.{k}.digest", f"{format_value(digest)}: {served}"
        start, end = _fractions(control)
        if start >= end:
            yield f"controls.{k}.end", f"{end:g} is not over start = {start:g}"


def control_values(given: Sequence[ControlFields], card: ModelCard) -> tuple[Control, ...]:
    """The ControlNets of a request with their defaults, in the order in which their residuals are added."""
    return tuple(_control(control, card) for control in given)


def _control(given: ControlFields, card: ModelCard) -> Control:
    start, end = _fractions(given)
    offered, scale = card.control(given["name"]), given.get("scale")
    return Control(
        name=given["name"],
        image=str(given["image"]),
        scale=1.0 if scale is None else float(scale),
        start=start,
        end=end,
        guess_mode=bool(given.get("guess_mode")),
        digest=offered.digest if offered is not None else "",
    )


def _fractions(given: ControlFields) -> tuple[float, float]:
    """Between which fractions of the steps a ControlNet applies."""
    start, end = given.get("start"), given.get("end")
    return float(start or 0), 1.0 if end is None else float(end)
