"""A request field is added in one file: the example in `docs/architecture.md`, applied to a copy of the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# What each part of the program makes of a field that is defined in `jobs/request.py` alone.
PROGRAM = """
import inspect, json, typing
from typer.testing import CliRunner
from denoised.app.admission.picture_parameters import PictureParameters
from denoised.app.admission.validation import resolve_request
from denoised.app.http.job_object import job_object
from denoised.app.http.requests.request_body import GenerateRequest
from denoised.app.http.schemas import JobObject
from denoised.cli.main import cli
from denoised.client import Client, Job, RequestFields
from denoised.jobs.record import JobRecord
from denoised.model.serving.card import ModelCard

card = ModelCard(
    name="shoes", width=28, height=28, channels=1, labels=[], timesteps=1000, prediction_type="epsilon",
    samplers=["ddim"], eta_samplers=["ddim"], default={}, max_images=4, numerics="fake",
)
given = resolve_request(GenerateRequest(seed=7, noise_scale=1.25).fields(), card)
left_out = resolve_request(GenerateRequest(seed=7).fields(), card)
job = JobRecord("a", "", given, 0.0)
parameters = given.parameters(0, "fake")
print(json.dumps({
    "schema": GenerateRequest.model_json_schema()["properties"]["noise_scale"],
    "given": given.noise_scale,
    "left out": left_out.noise_scale,
    "stored": JobRecord.from_fields(job.to_fields()).request.noise_scale,
    "stored before": JobRecord.from_fields(
        job.to_fields() | {"request": job.to_fields()["request"].replace('"noise_scale": 1.25, ', "")}
    ).request.noise_scale,
    "in the job object": job_object(job)["noise_scale"],
    "documented in the job object": "noise_scale" in JobObject.model_fields,
    "in a picture": parameters["noise_scale"],
    "in a picture with the default": "noise_scale" in left_out.parameters(0, "fake"),
    "read from a picture": PictureParameters.model_validate(parameters).fields()["noise_scale"],
    "in the client's job": Job.from_json(job_object(job)).noise_scale,
    "in the client's signature": "noise_scale" in typing.get_type_hints(RequestFields),
    "in the client's help": "noise_scale: scale of the first noise (0.5 … 1.5)" in inspect.getdoc(Client.generate),
    "help": CliRunner().invoke(cli, ["generate", "--help"]).stdout,
}))
"""


def example(repository: Path) -> list[tuple[str, str]]:
    """The hunks of the documented diff: the lines as they are, and as they become."""
    section = (repository / "docs/architecture.md").read_text().split("## How to add a request field")[1]
    diff = section.split("```diff\n")[1].split("```")[0]
    hunks = [hunk.splitlines()[1:] for hunk in diff.split("\n@@")[1:]]
    return [
        tuple("".join(f"{line[1:]}\n" for line in hunk if line[0] in kinds) for kinds in (" -", " +"))  # type: ignore[misc]
        for hunk in hunks
    ]


@pytest.fixture(scope="module")
def derived(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `PROGRAM` prints with the example applied to `jobs/request.py`, and nothing else changed."""
    folder = tmp_path_factory.mktemp("extended")
    package = folder / "denoised"
    package.mkdir()
    for part in (repository / "denoised").iterdir():
        if part.name != "jobs":
            (package / part.name).symlink_to(part.resolve())
    shutil.copytree(repository / "jobs", package / "jobs")
    definition = package / "jobs" / "request.py"
    text = definition.read_text()
    for old, new in example(repository):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    definition.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [sys.executable, "-P", "-c", PROGRAM]
    outcome = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def test_a_field_defined_in_one_file_reaches_every_part_of_the_program(derived: dict[str, Any]) -> None:
    schema, help = derived.pop("schema"), derived.pop("help")
    assert schema["anyOf"][0] == {"type": "number", "minimum": 0.5, "maximum": 1.5}
    assert (schema["default"], schema["title"], schema["description"]) == (
        1.0,
        "Noise scale",
        "scale of the first noise",
    )
    assert re.search(r"--noise-scale <?float>?\s+scale of the first noise", help, re.IGNORECASE)
    assert "DENOISED_NOISE_SCALE" in help
    assert derived == {
        "given": 1.25,
        "left out": 1.0,
        "stored": 1.25,
        "stored before": 1.0,
        "in the job object": 1.25,
        "documented in the job object": True,
        "in a picture": 1.25,
        "in a picture with the default": False,
        "read from a picture": 1.25,
        "in the client's job": 1.25,
        "in the client's signature": True,
        "in the client's help": True,
    }
