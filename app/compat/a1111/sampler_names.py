"""Samplers and schedules under the names that AUTOMATIC1111's web UI uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from denoised.model.serving.card import ModelCard

AUTOMATIC = "automatic"


@dataclass(frozen=True)
class SamplerName:
    """A sampler of the web UI.

    Attributes:
        name: As the web UI writes it.
        sampler: The name that requests have for it here.
        aliases: Other names that the web UI accepts.
        schedule: What `Automatic` means for it.
        random: Whether its steps add noise, so that an `eta` other than 1 would change it.
    """

    name: str
    sampler: str
    aliases: Sequence[str] = ()
    schedule: str = AUTOMATIC
    random: bool = False


@dataclass(frozen=True)
class ScheduleName:
    """A schedule of the web UI, which calls it a scheduler.

    Attributes:
        name, label: As the web UI writes it.
        fields: The request fields that select it.
        aliases: Other names that the web UI accepts.
        rho: The exponent of Karras et al. 2022; −1 if it has none.
    """

    name: str
    label: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()
    rho: float = -1.0

    def is_offered(self, sampler: str, card: ModelCard) -> bool:
        """Whether a model can use it with a sampler."""
        if self.fields.get("karras"):
            return sampler in card.karras_samplers
        return not self.fields or (self.fields["spacing"] in card.spacings and card.takes_spacing(sampler))


SAMPLERS = (
    SamplerName("DPM++ 2M", "dpmpp_2m", ["k_dpmpp_2m"], "karras"),
    SamplerName("DPM++ SDE", "dpmpp_sde", ["k_dpmpp_sde"], "karras", random=True),
    SamplerName("DPM++ 2M SDE", "dpmpp_2m_sde", ["k_dpmpp_2m_sde"], "exponential", random=True),
    SamplerName("Euler a", "euler_a", ["k_euler_a", "k_euler_ancestral"], random=True),
    SamplerName("Euler", "euler", ["k_euler"]),
    SamplerName("LMS", "lms", ["k_lms"]),
    SamplerName("Heun", "heun", ["k_heun"]),
    SamplerName("DPM2", "dpm_2", ["k_dpm_2"], "karras"),
    SamplerName("DDIM", "ddim"),
    SamplerName("PLMS", "plms"),
    SamplerName("UniPC", "unipc"),
    SamplerName("LCM", "lcm", ["k_lcm"], random=True),
    SamplerName("TCD", "tcd"),
    SamplerName("DDPM", "ddpm", random=True),
)
SCHEDULES = (
    ScheduleName(AUTOMATIC, "Automatic"),
    ScheduleName("uniform", "Uniform", {"spacing": "linspace", "karras": False}),
    ScheduleName("karras", "Karras", {"karras": True}, rho=7.0),
    ScheduleName("exponential", "Exponential", {"spacing": "exponential", "karras": False}),
    ScheduleName("sgm_uniform", "SGM Uniform", {"spacing": "sgm_uniform", "karras": False}, ["SGMUniform"]),
    ScheduleName("beta", "Beta", {"spacing": "beta", "karras": False}),
)


def samplers_of(cards: Sequence[ModelCard]) -> list[SamplerName]:
    """The samplers that some of the models offer; one that the web UI lacks has our name."""
    offered = list(dict.fromkeys(sampler for card in cards for sampler in card.samplers))
    known = {each.sampler: each for each in SAMPLERS}
    named = [each for each in SAMPLERS if each.sampler in offered]
    return named + [SamplerName(sampler, sampler) for sampler in offered if sampler not in known]


def schedules_of(cards: Sequence[ModelCard]) -> list[ScheduleName]:
    """The schedules that some of the models offer with some sampler."""
    return [each for each in SCHEDULES if any(each.is_offered(name, card) for card in cards for name in card.samplers)]


def find_schedule(name: str) -> ScheduleName | None:
    """The schedule of a name or label, in any case."""
    return next((each for each in SCHEDULES if name.casefold() in _schedule_names(each)), None)


def split_name(name: str) -> tuple[str, ScheduleName | None]:
    """The sampler's part of a name of earlier versions of the web UI, such as "DPM++ 2M Karras", and its schedule."""
    for schedule in SCHEDULES:
        for ending in _schedule_names(schedule):
            if name.casefold().endswith(f" {ending}"):
                return name[: -len(ending) - 1], schedule
    return name, None


def find_sampler(name: str, cards: Sequence[ModelCard]) -> SamplerName | None:
    """The sampler of a name, an alias or one of our names, in any case; None if no model offers it."""
    return next((each for each in samplers_of(cards) if name.casefold() in _sampler_names(each)), None)


def web_ui_name(sampler: str) -> str:
    """The web UI's name of a sampler; our name for one that it lacks."""
    return next((each.name for each in SAMPLERS if each.sampler == sampler), sampler)


def _schedule_names(schedule: ScheduleName) -> list[str]:
    return [each.casefold() for each in (schedule.name, schedule.label, *schedule.aliases)]


def _sampler_names(sampler: SamplerName) -> list[str]:
    return [each.casefold() for each in (sampler.name, sampler.sampler, *sampler.aliases)]
