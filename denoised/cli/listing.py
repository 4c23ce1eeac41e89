"""`denoised jobs`, `job`, `cancel` and `models`: tables on a terminal, tab-separated lines otherwise, or JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime

from denoised.cli.console import OK, age, duration, exit_code, print_line, truncate
from denoised.cli.tables import print_rows
from denoised.client import Client, Job, Model, ServiceError
from denoised.client.errors import RequestRejected
from denoised.client.job import Status
from denoised.command_line.console import can_redraw, print_error, print_json, stdout

MISSING = "-"


def print_jobs(client: Client, limit: int, status: Status | None, as_json: bool) -> None:
    """Print the caller's newest jobs."""
    listed = list(client.jobs(limit, status))
    if as_json:
        print_json({"jobs": [job.raw for job in listed]})
        return
    if can_redraw(stdout()):
        rows = [(job.id, _state(job), job.model, _shown(job), str(job.n), _age(job)) for job in listed]
        print_rows(
            stdout(),
            ["id", "status", "model", "picture", ">n", ">age"],
            rows,
            [">n", "model", "picture"],
            ["picture", "model"],
        )
    else:  # the columns that programs have always read
        steps = [(job.id, job.status, job.model, _shown(job), str(job.n), _steps(job), _age(job)) for job in listed]
        print_rows(stdout(), ["id", "status", "model", "label", ">n", ">step", ">age"], steps)


def print_job(client: Client, job_id: str, as_json: bool) -> None:
    """Print everything about a job."""
    job = client.job(job_id)
    if as_json:
        print_json(job.raw)
        return
    print_rows(stdout(), ["", ""], [row for row in _details(job) if row[1]])


def cancel_jobs(client: Client, job_ids: Iterable[str], as_json: bool) -> int:
    """Cancel jobs and print one line per job. Returns the exit code of the first one that could not be canceled."""
    codes = [_cancel(client, job_id, as_json) for job_id in job_ids]
    return next((code for code in codes if code != OK), OK)


def print_models(client: Client, as_json: bool, name: str | None = None) -> None:
    """Print the served models, or everything that a user needs to know about one of them."""
    listed = [model for model in client.models() if name in (None, model.name)]
    if name is not None and not listed:
        served = ", ".join(model.name for model in client.models()) or "none"
        raise RequestRejected(f"no live worker serves a model {name!r} (served: {served})", 404)
    if as_json:
        print_json({"models": [model.raw for model in listed]})
        return
    if name is not None:
        print_rows(stdout(), ["", ""], [row for row in _facts(listed[0]) if row[1]])
        return
    headings = ["model", "size", ">classes", "adapters", "default", ">max n", ">workers"]
    print_rows(
        stdout(),
        headings,
        [_summary(model) for model in listed],
        [">max n", ">workers", ">classes", "size", "adapters"],
    )


def _cancel(client: Client, job_id: str, as_json: bool) -> int:
    try:
        job = client.cancel(job_id)
    except ServiceError as error:
        if as_json:
            print_json({"id": job_id, "error": str(error)})
        else:
            print_error("cancel", error)
        return exit_code(error)
    if as_json:
        print_json(job.raw)
    else:
        print_line(f"job {job.id} was canceled")
    return OK


def _shown(job: Job) -> str:
    """The label, or the beginning of the prompt."""
    return job.label or truncate(job.prompt or MISSING)


def _state(job: Job) -> str:
    """The status, with the steps of a running job."""
    return f"{job.status} {_steps(job)}" if job.status == "running" else job.status


def _steps(job: Job) -> str:
    return f"{job.step}/{job.run_steps}"


def _seeds(job: Job) -> str:
    last = job.seed + job.n - 1
    return f"{job.n}, seed {job.seed}" if job.n == 1 else f"{job.n}, seeds {job.seed} … {last}"


def _age(job: Job) -> str:
    return age(max(0.0, time.time() - job.created_at))


def _details(job: Job) -> list[tuple[str, str]]:
    """Names and values; a value that is unknown, or not known yet, is empty."""
    timing = job.timing
    guidance = f", guidance {job.guidance_scale:g}" if job.guidance_scale != 1 else ""
    ahead = "" if job.queue_position is None else f" ({job.queue_position} ahead)"
    batch = "" if timing.mean_batch is None else f", {timing.mean_batch:.1f} images per evaluation on average"
    return [
        ("id", job.id),
        ("status", job.status + ahead),
        ("error", f"{job.error.code}: {job.error.message}" if job.error else ""),
        ("model", job.model),
        ("label", job.label or MISSING),
        ("prompt", job.prompt or ""),
        ("negative prompt", job.negative_prompt or ""),
        ("adapters", ", ".join(f"{lora.name}:{lora.weight:g}" for lora in job.loras)),
        ("ControlNets", ", ".join(f"{control.name}:{control.scale:g}" for control in job.controls)),
        ("picture", _start(job)),
        ("mask", job.mask or ""),
        ("images", _seeds(job)),
        ("sampler", f"{job.sampler}, {job.steps} steps{guidance}"),
        ("progress", f"step {_steps(job)}" + (f", attempt {job.attempt}" if job.attempt > 1 else "")),
        ("remaining", "" if job.eta_seconds is None else f"about {duration(job.eta_seconds)}"),
        ("created", f"{_local_time(job.created_at)} ({_age(job)} ago)"),
        ("waited", "" if timing.queued is None else duration(timing.queued)),
        ("ran", "" if timing.running is None else duration(timing.running)),
        ("evaluations", f"{timing.evaluations}{batch}"),
        ("numerics", job.numerics or ""),
        *((f"image {image.index}", f"{image.url}  sha256 {image.sha256}") for image in job.images),
        ("events", f"/jobs/{job.id}/events"),
        ("animation", f"/jobs/{job.id}/animation"),
    ]


def _start(job: Job) -> str:
    """The picture that a job started from, and how much it counts; empty without one."""
    if job.image is None:
        return ""
    edits = job.image_guidance_scale is not None  # such a model starts from noise alone
    counts = f"picture guidance {job.image_guidance_scale:g}" if edits else f"strength {job.strength:g}"
    return f"{job.image}, {counts}"


def _local_time(seconds: float) -> str:
    """Seconds since the epoch as local time: Mon 30 Nov 2026, 14:03:10."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%a %d %b %Y, %H:%M:%S")


def _facts(model: Model) -> list[tuple[str, str]]:
    """Names and values; a value that the model does not have is empty."""
    guide = model.prompt_guide
    sizes = f"multiples of {model.size_multiple}, width·height up to {model.max_pixels}" if model.size_multiple else ""
    return [
        ("name", model.name),
        ("about", model.description),
        ("size", f"{model.width}×{model.height}×{model.channels}"),
        ("sizes", sizes),
        ("takes", ", ".join(model.inputs)),
        ("labels", ", ".join(model.labels)),
        ("adapters", ", ".join(model.loras)),
        ("ControlNets", ", ".join(model.controls)),
        ("prompts", guide.template),
        *((part, ", ".join(values)) for part, values in guide.parts.items()),
        *(("example", f'denoised generate "{example}" --model {model.name}') for example in guide.examples),
        ("default", _sampling(model)),
        ("samplers", ", ".join(model.samplers)),
        ("max n", str(model.max_images)),
        ("workers", str(model.workers)),
        ("numerics", model.numerics),
        ("data", model.data),
        ("license", model.license),
    ]


def _sampling(model: Model) -> str:
    """The defaults of a model: "unipc_3, 6 steps geometric, guidance 2 in 0.2 … 2"."""
    default = model.default
    levels = "at its own levels" if default.sigmas else default.spacing or ""
    parts = [default.sampler, f"{default.steps} steps {levels}".rstrip()]
    if default.guidance_scale != 1:
        interval = default.guidance_interval
        within = f" in {interval[0]:g} … {interval[1]:g}" if interval else ""
        parts.append(f"guidance {default.guidance_scale:g}{within}")
    return ", ".join(parts)


def _summary(model: Model) -> tuple[str, ...]:
    return (
        model.name,
        f"{model.width}×{model.height}×{model.channels}",
        "prompts" if "prompt" in model.inputs else str(len(model.labels)),
        ", ".join(model.loras) or MISSING,
        _sampling(model),
        str(model.max_images),
        str(model.workers),
    )
