"""How prompts of a model are best written: examples, and parts to choose from, for pages and documents.

Imports no torch: `model.serving.card`, which the HTTP front end uses, builds on it.
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SUBJECT = "subject"  # the placeholder of what the visitor writes
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

_Name = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,29}$")]
_Value = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[^,{}\x00-\x1f]+$")]


class PromptGuide(BaseModel):
    """The `prompt_guide` of a card; empty if the model's prompts have no form.

    The form of a prompt is a template of clauses between commas, such as `{subject}, {style} style, on a {background}
    background`. Each clause has one placeholder: `subject`, or a part with its values. A prompt leaves out the clauses
    of parts that are not chosen.

    Attributes:
        examples: prompts that show what the model does.
        template: see above; empty if there are no parts.
        parts: the values of each placeholder but `subject`, in the order in which they are shown.
    """

    model_config = ConfigDict(extra="forbid")

    examples: list[Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]] = Field(
        default=[], max_length=12
    )
    template: str = Field(default="", max_length=200)
    parts: dict[_Name, Annotated[list[_Value], Field(min_length=1, max_length=40)]] = Field(default={}, max_length=6)

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        clauses = [_PLACEHOLDER.findall(clause) for clause in self.template.split(",")] if self.template else []
        if any(len(names) != 1 for names in clauses):
            raise ValueError(f"template = {self.template!r} has a clause without one placeholder")
        names = sorted(name for (name,) in clauses)
        expected = sorted([SUBJECT, *self.parts]) if self.template or self.parts else []
        if names != expected:
            raise ValueError(f"template = {self.template!r} has the placeholders {names} (expected: {expected})")
        return self

    def prompt(self, subject: str, **chosen: str) -> str:
        """A prompt. chosen: values of parts; parts that are not named are left out."""
        values = {SUBJECT: subject, **chosen}
        clauses = [clause.strip() for clause in self.template.split(",")]
        names = [_PLACEHOLDER.findall(clause)[0] for clause in clauses if clause]
        written = zip(names, clauses, strict=False)
        return ", ".join(clause.replace(f"{{{name}}}", values[name]) for name, clause in written if values.get(name))
