"""The commands that call a server, against the real API: their output for people and programs, and exit codes."""

from __future__ import annotations

import io
import json
import re
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from denoised.app.admission import catalog
from denoised.app.http.api_keys import KeyRing, key_hash
from denoised.app.http.key_limits import KeyLimits
from denoised.cli.console import age, duration
from denoised.cli.generate import resolve_label, resolve_text
from denoised.cli.halfblocks import GAP, UPPER, Halfblocks, fit_size
from denoised.cli.main import cli
from denoised.cli.tables import fit_table
from denoised.cli.top import WorkerRates
from denoised.client import Client, RequestRejected, WorkerStatus
from denoised.client.model import Model
from denoised.command_line.console import printable
from denoised.jobs.store.update import final_update

Run = Callable[..., Any]


@pytest.fixture
def run(url: str) -> Run:
    """`run("jobs", …)` runs a command against an API with a worker that serves the model `shoes`."""
    return lambda command, *arguments: invoke(command, "--url", url, *map(str, arguments))


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


def one_line(outcome: Result) -> str:
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert outcome.stdout == ""
    return str(outcome.stderr)


def test_version_prints_the_projects_version(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    outcome = invoke("--version")
    assert (outcome.exit_code, outcome.stdout) == (0, f"denoised {project['version']}\n")


def test_jobs_prints_tab_separated_lines_when_piped(run: Run, fake_worker: Any) -> None:
    old, new = fake_worker.succeeded(), fake_worker.create(label=0, label_name="sneaker", n=3)
    lines = [line.split("\t") for line in run("jobs").stdout.splitlines()]
    assert [line[:6] for line in lines] == [
        [new, "queued", "shoes", "sneaker", "3", "0/20"],
        [old, "succeeded", "shoes", "-", "1", "0/20"],
    ]
    assert [line.split("\t")[0] for line in run("jobs", "--limit", 1).stdout.splitlines()] == [new]
    assert [line.split("\t")[0] for line in run("jobs", "--status", "succeeded").stdout.splitlines()] == [old]


def test_environment_variables_set_the_options_of_jobs_and_top(
    run: Run, fake_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        waiting = fake_worker.create()
    fake_worker.succeeded()
    monkeypatch.setenv("DENOISED_STATUS", "queued")
    monkeypatch.setenv("DENOISED_LIMIT", "1")
    assert [line.split("\t")[0] for line in run("jobs").stdout.splitlines()] == [waiting]
    assert len(run("jobs", "--limit", 5).stdout.splitlines()) == 2, "what is given comes first"
    monkeypatch.setenv("DENOISED_ONCE", "1")
    assert run("top", "--interval", 0.5).exit_code == 0


def test_every_command_prints_json(run: Run, fake_worker: Any) -> None:
    done, waiting = fake_worker.succeeded(), fake_worker.create()
    assert [job["id"] for job in json.loads(run("jobs", "--json").stdout)["jobs"]] == [waiting, done]
    assert json.loads(run("job", done, "--json").stdout)["images"][0]["seed"] == 7
    assert [model["name"] for model in json.loads(run("models", "--json").stdout)["models"]] == ["shoes"]
    top = json.loads(run("top", "--once", "--interval", 0.5, "--json").stdout)
    assert (top["workers"][0]["name"], [job["id"] for job in top["jobs"]]) == ("worker-1", [waiting])
    lines = run("cancel", waiting, done, "--json")
    canceled, refused = map(json.loads, lines.stdout.splitlines())
    assert (canceled["status"], refused["id"], "already succeeded" in refused["error"]) == ("canceled", done, True)
    assert (lines.exit_code, lines.stderr) == (1, "")


def test_job_prints_everything_about_a_job(run: Run, fake_worker: Any) -> None:
    failed = fake_worker.create()
    error = {"code": "nan_output", "message": "not a number"}
    fake_worker.store.write(final_update(fake_worker.store.job(failed), "failed", error))
    facts = dict(line.split("\t") for line in run("job", failed).stdout.splitlines())
    assert (facts["id"], facts["status"], facts["error"]) == (failed, "failed", "nan_output: not a number")
    facts = dict(line.split("\t") for line in run("job", fake_worker.succeeded()).stdout.splitlines())
    assert re.search(r"^/jobs/\w+/images/0  sha256 [0-9a-f]{64}$", facts["image 0"])
    assert "picture" not in facts
    digest = f"sha256:{'0' * 64}"
    job = fake_worker.create(image=digest, mask=digest, strength=0.5)
    facts = dict(line.split("\t") for line in run("job", job).stdout.splitlines())
    assert (facts["picture"], facts["mask"]) == (f"{digest}, strength 0.5", digest)
    edited = fake_worker.create(image=digest, image_guidance_scale=2.0)
    assert f"picture\t{digest}, picture guidance 2" in run("job", edited).stdout


def test_cancel_reports_canceled_jobs_and_those_it_cannot_cancel(run: Run, fake_worker: Any) -> None:
    one, over, two = fake_worker.create(), fake_worker.succeeded(), fake_worker.create()
    outcome = run("cancel", one, over, "nothing", two)
    assert outcome.exit_code == 1
    assert outcome.stdout.splitlines() == [f"job {job} was canceled" for job in (one, two)]
    first, second = outcome.stderr.splitlines()
    assert "has already succeeded" in first
    assert 'job "nothing" not found' in second
    assert run("cancel", one).exit_code == 0


def test_models_prints_tab_separated_lines_when_piped(run: Run) -> None:
    assert run("models").stdout == "shoes\t28×28×1\t3\t-\tddim, 20 steps, guidance 2.5\t16\t1\n"


def test_models_shows_what_one_model_takes(run: Run, fake_worker: Any, card_of: Any) -> None:
    guide = {
        "examples": ["a goat, flat style"],
        "template": "{subject}, {style} style",
        "parts": {"style": ["flat", "noto"]},
    }
    painter = card_of(name="painter", labels=[], prompts=True, prompt_guide=guide, size_multiple=16, max_pixels=4096)
    fake_worker.serve(card_of(), painter)
    while "painter" not in run("models").stdout:  # the server reads the cards once a second
        time.sleep(0.1)
    facts = dict(line.split("\t") for line in run("models", "painter").stdout.splitlines())
    assert facts["example"] == 'denoised generate "a goat, flat style" --model painter'
    assert (facts["prompts"], facts["style"]) == ("{subject}, {style} style", "flat, noto")
    assert facts["sizes"] == "multiples of 16, width·height up to 4096"
    assert "labels" not in facts
    assert dict(line.split("\t") for line in run("models", "shoes").stdout.splitlines())["labels"].startswith("sneaker")
    (listed,) = json.loads(run("models", "painter", "--json").stdout)["models"]
    assert listed["prompt_guide"] == guide
    missing = run("models", "none")
    assert (missing.exit_code, "served: shoes, painter" in missing.stderr) == (1, True)


def test_top_prints_a_line_for_the_queue_and_one_per_worker(run: Run, fake_worker: Any) -> None:
    outcome = run("top", "--once", "--interval", 0.5)
    assert outcome.exit_code == 0
    assert outcome.stdout.splitlines() == [
        "queue jobs=0 evaluations=0",
        "worker worker-1 device=– batch=0/16 pending=0 evaluations/s=? evaluations/turn=?",
    ]


def test_top_shows_an_operator_what_all_keys_use_and_others_their_own(
    start_server: Callable[..., str], fake_worker: Any
) -> None:
    fake_worker.serve()
    names = {key_hash("boss-key"): "boss", key_hash("my-key"): "me"}
    limits = {"boss": KeyLimits(operator=True), "me": KeyLimits(weight=2.0, per_day=5000)}
    url = start_server(ring=KeyRing(names, limits))
    with Client(url, key="my-key") as client:
        client.submit(steps=10, sampler="ddim", guidance_scale=1.0)
        assert client.usage().quota("evaluations_per_day") is not None
        with pytest.raises(RequestRejected, match="operator"):
            client.usage_of_all_keys()
    for key in ("boss-key", "my-key"):
        shown = invoke("top", "--once", "--interval", "0.5", "--url", url, "--key", key)
        assert shown.exit_code == 0, shown.stderr
        line = shown.stdout.splitlines()[-1]
        assert line.startswith("key me weight=2 jobs_per_key=1/500 evaluations_per_key=10/50000 ")
        assert " evaluations_per_day=10/5000 " in line
    (usage,) = json.loads(invoke("top", "--once", "--json", "--url", url, "--key", "boss-key").stdout)["usage"]
    assert (usage["key"], usage["weight"]) == ("me", 2.0)


@pytest.mark.parametrize(
    ("labels", "label", "sent"),
    [
        (("1", "10", "2"), "2", "2"),
        (("1", "10", "2"), "0", 0),
        (("cat", "dog"), "1", 1),
        (("cat", "dog"), "dog", "dog"),
        (("cat", "dog"), "-1", "-1"),
        (("cat", "dog"), "٢", "٢"),
    ],
)
def test_a_label_of_digits_is_a_name_before_it_is_an_index(
    labels: tuple[str, ...], label: str, sent: str | int
) -> None:
    other = cast(Model, SimpleNamespace(name="other", labels=("7",)))
    model = cast(Model, SimpleNamespace(name="shoes", labels=labels))
    assert resolve_label({"label": label}, [model, other]) == {"label": sent}
    assert resolve_label({"label": label, "model": "shoes"}, [other, model]) == {"label": sent, "model": "shoes"}
    assert resolve_label({"label": "7"}, []) == {"label": 7}
    painter = cast(Model, SimpleNamespace(name="painter", labels=()))
    assert resolve_label({"label": label}, [painter, model]) == {"label": sent}, "the first that takes labels"


def test_a_text_is_the_prompt_of_a_model_that_takes_one_and_else_the_label() -> None:
    shoes = cast(Model, SimpleNamespace(name="shoes", labels=("cat", "dog"), inputs=("label",)))
    painter = cast(Model, SimpleNamespace(name="painter", labels=(), inputs=("prompt", "negative_prompt")))
    assert resolve_text({}, "a goat", [painter, shoes]) == {"prompt": "a goat"}
    assert resolve_text({}, "12", [painter, shoes]) == {"prompt": "12"}
    assert resolve_text({"model": "shoes"}, "dog", [painter, shoes]) == {"model": "shoes", "label": "dog"}
    assert resolve_text({}, "1", [shoes, painter]) == {"label": 1}
    assert resolve_text({"model": "gone"}, "a goat", [shoes]) == {"model": "gone", "label": "a goat"}


@pytest.mark.parametrize("option", ["--label", "--prompt"])
def test_generate_takes_a_text_or_the_option_that_says_the_same(run: Run, option: str, tmp_path: Path) -> None:
    outcome = run("generate", "bag", option, "dress", "--out", tmp_path)
    assert outcome.exit_code == 2
    assert f"give either TEXT or {option}, not both" in outcome.stderr


def test_what_an_error_quotes_is_printed_as_it_is(run: Run, tmp_path: Path) -> None:
    outcome = run("generate", "--label", "a:b:[red]c", "--out", tmp_path)
    assert "a:b:[red]c" in one_line(outcome)


def test_generate_sends_its_text_as_the_model_takes_it(
    run: Run, fake_worker: Any, card_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CACHE_SECONDS", 0.0)
    fake_worker.serve(card_of(labels=[], prompts=True, name="painter"), name="worker-2")
    outcome = run("generate", "a goat", "--model", "painter", "--steps", 9999, "--out", tmp_path)
    assert one_line(outcome).count(":") < 4, "the number of steps alone is refused"
    assert "9999" in one_line(outcome)
    outcome = run("generate", "a goat", "--out", tmp_path)
    assert '"a goat" is not a class of shoes' in one_line(outcome)


def test_generate_sends_the_class_named_2_for_label_2(
    run: Run, fake_worker: Any, card_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CACHE_SECONDS", 0.0)
    fake_worker.serve(card_of(labels=["1", "10", "2"], name="numbers"), name="worker-2")
    outcome = run("generate", "--model", "numbers", "--label", "2", "--steps", 9999, "--out", tmp_path)
    assert "label" not in one_line(outcome), "the class exists; the number of steps alone is refused"
    outcome = run("generate", "--model", "numbers", "--label", "3", "--out", tmp_path)
    assert "3 is not a class of numbers" in one_line(outcome)


REFUSED = [
    (["generate", "--label", "boat"], 2, "boat"),
    (["generate", "--steps", "9999"], 2, "9999"),
    (["generate", "-n", "0"], 2, "0"),
    (["generate", "--format", "gif"], 2, "gif"),
    (["generate", "--preview", "all"], 2, "preview"),
    (["generate", "--seed", "-1"], 2, "seed"),
    (["job", "0"], 1, "not found"),
    (["job", "../tickets"], 1, "not found"),
]


@pytest.mark.parametrize(("command", "code", "words"), REFUSED)
def test_a_rejected_request_is_one_line_and_an_invalid_value_is_wrong_usage(
    run: Run, command: list[str], code: int, words: str
) -> None:
    outcome = run(*command)
    assert outcome.exit_code == code
    assert words in one_line(outcome)


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (["--sampler"], "ddim\tSimple.\nddpm\t\n"),
        (["--sampler", "--steps", "3"], "ddim\tSimple.\n"),
        (["--label"], "Ankle Boot\tclass 1\n"),
        (["--model"], "shoes\t"),
    ],
)
def test_an_option_without_a_value_lists_what_the_server_offers(
    run: Run, fake_worker: Any, card_of: Any, arguments: list[str], listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CACHE_SECONDS", 0.0)
    fake_worker.serve(card_of(sampler_descriptions={"ddim": "Simple."}))
    outcome = run("generate", *arguments)
    assert outcome.exit_code == 2
    assert outcome.stderr.count("\n") == 1
    assert f"{arguments[0]} needs a value" in outcome.stderr
    assert listed in outcome.stdout
    outcome = run("generate", *arguments, "--json")
    assert (outcome.stdout, outcome.exit_code) == ("", 2)
    assert listed in outcome.stderr


def test_a_shell_completes_the_values_that_the_server_offers(url: str) -> None:
    for shown, wanted in (("--sampler dd", "ddim"), ("--label s", "sneaker"), ("--model s", "shoes")):
        line = f"denoised generate --url {url} {shown}"
        environment = {"_DENOISED_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
        assert wanted in CliRunner().invoke(cli, [], prog_name="denoised", env=environment).stdout
    unreachable = {**environment, "_TYPER_COMPLETE_ARGS": "denoised generate --url http://127.0.0.1:9 --label "}
    assert CliRunner().invoke(cli, [], prog_name="denoised", env=unreachable).stderr == ""


@pytest.mark.parametrize(
    "command", [["generate"], ["jobs"], ["job", "1"], ["cancel", "1"], ["models"], ["top", "--once"]]
)
def test_without_a_server_every_command_prints_one_line_and_exits_with_3(command: list[str]) -> None:
    for arguments in ([], ["--json"]):
        outcome = invoke(*command, "--url", "http://127.0.0.1:9", *arguments)
        assert outcome.exit_code == 3
        if command[0] == "cancel" and arguments:
            assert "no server answers" in json.loads(outcome.stdout)["error"]
        else:
            assert "denoised serve" in one_line(outcome)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-n", "0"], "-n: 0 was given (allowed: 1 or more)"),
        (["--steps", "-3"], "-3 was given (allowed: 1 or more)"),
        (["--eta", "nan"], "nan was given (allowed: 0 … 1)"),
        (["--guidance-scale", "21"], "21.0 was given (allowed: 1 … 20)"),
        (["--format", "tiff"], "tiff was given (allowed: png, webp or jpeg)"),
        (["--guidance-interval", "low"], "'low' is not a comma-separated list of numbers"),
    ],
)
def test_a_value_that_no_server_takes_is_wrong_usage_without_a_server(options: list[str], words: str) -> None:
    outcome = invoke("generate", "--url", "http://127.0.0.1:9", *options)
    assert outcome.exit_code == 2
    assert words in one_line(outcome)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid", "http://[::1]:9"])
def test_no_message_has_the_number_of_a_system_error(url: str, tmp_path: Path) -> None:
    outcomes = [invoke(*command, "--url", url) for command in (["jobs"], ["generate"], ["top", "--once"])]
    outcomes.append(invoke("verify", "--url", url, tmp_path / "missing.png"))
    outcomes.append(invoke("generate", "--url", url, "--out", "/dev/null/x"))
    assert not [outcome.stderr for outcome in outcomes if re.search(r"Errno|Error -?\d|/proc/", outcome.stderr)]


def test_a_busy_server_is_exit_code_4(start_server: Callable[..., str], fake_worker: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("denoised.cli.console.RETRY_SECONDS", 0.0)
    outcome = invoke("generate", "--url", start_server())
    assert outcome.exit_code == 4
    assert "no worker serves any model now" in one_line(outcome)


@pytest.mark.parametrize(
    "command", ["jobs --limit 0", "jobs --status lost", "job", "top --interval 0", "x", "generate --nonsense", "--nope"]
)
def test_wrong_usage_is_exit_code_2_and_one_line_at_any_width(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    outcome = invoke(*command.split())
    assert outcome.exit_code == 2
    assert " --help)" in one_line(outcome)


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (["generate", "--steps", "1O"], "an integer"),
        (["jobs", "-n", "0"], "1 or more"),
        (["top", "--interval", "0"], "0.5 or more"),
    ],
)
def test_an_error_about_an_option_contains_the_value_and_the_allowed_range(
    command: list[str], allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = invoke(*command)
    assert outcome.exit_code == 2
    assert f"{command[2]!r} was given (allowed: {allowed})" in outcome.stderr
    assert command[1] in outcome.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "ftp://example.org", ""])
def test_an_invalid_url_is_wrong_usage(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for outcome in (invoke("models", "--url", url), invoke("models", "--url", url, "--json")):
        assert outcome.exit_code == 2
        assert f"{url!r} begins with neither http:// nor https://" in outcome.stderr


def test_a_folder_that_is_not_writable_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run("generate", "--out", tmp_path / "file" / "pictures")
    assert outcome.exit_code == 1
    assert str(tmp_path) in one_line(outcome)


@pytest.mark.parametrize("given", [[], ["--key", "a-guess"]])
def test_a_missing_or_wrong_key_is_one_line_that_says_how_to_pass_one(
    given: list[str], start_server: Callable[..., str]
) -> None:
    outcome = invoke("models", "--url", start_server(keys=("secret",)), *given)
    assert outcome.exit_code == 1
    assert "--key KEY, or DENOISED_API_KEY" in one_line(outcome)
    assert "a-guess" not in outcome.stderr


def test_an_error_never_contains_the_key(run: Run) -> None:
    outcome = run("models", "--key", "sec ret")
    assert (outcome.exit_code, "sec" in one_line(outcome)) == (1, False)


def test_help_lists_the_exit_codes() -> None:
    said = " ".join(invoke("--help").stdout.split())
    for words in ("0 success", "1 rejected", "2 wrong usage", "3 no server answers", "4 the server is busy", "130"):
        assert words in said


@pytest.mark.parametrize("command", ["generate", "verify", "jobs", "job", "cancel", "models", "top"])
def test_every_command_has_help(command: str) -> None:
    outcome = invoke(command, "--help")
    assert outcome.exit_code == 0
    assert "Usage" in outcome.stdout
    assert "--json" in outcome.stdout or command == "key"


# Half-blocks


def drawn(picture: Halfblocks, width: int = 80, **console: Any) -> str:
    out = io.StringIO()
    options = {"force_terminal": True, "color_system": "truecolor", "_environ": {}, **console}
    Console(file=out, width=width, **options).print(picture)
    return out.getvalue()


def test_a_character_cell_shows_two_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoised.cli.halfblocks.MIN_SIDE", 1)
    picture = Image.new("RGB", (2, 3))
    picture.putdata([(1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12), (13, 14, 15), (13, 14, 15)])
    assert drawn(Halfblocks([[picture]])) == (
        f"\x1b[38;2;1;2;3;48;2;7;8;9m{UPPER}\x1b[0m\x1b[38;2;4;5;6;48;2;10;11;12m{UPPER}\x1b[0m\n"
        f"\x1b[38;2;13;14;15m{UPPER}{UPPER}\x1b[0m\n"
    )


def test_images_are_side_by_side_if_there_is_room() -> None:
    pictures = [Image.new("L", (28, 28), shade) for shade in (0, 80, 160)]
    plain = re.compile(r"\x1b\[[0-9;]*m")
    wide = plain.sub("", drawn(Halfblocks([pictures]), 90)).splitlines()
    assert wide == [" ".join([UPPER * 28] * 3)] * 14
    narrow = plain.sub("", drawn(Halfblocks([pictures]), 60)).splitlines()
    assert narrow == [" ".join([UPPER * 28] * 2)] * 14 + [""] + [UPPER * 28] * 14
    tiny = plain.sub("", drawn(Halfblocks([pictures]), 10)).splitlines()
    assert max(map(len, tiny)) == 10


@given(
    size=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    grid=st.tuples(st.integers(1, 2), st.integers(1, 16)),
    columns=st.integers(1, 250),
    lines=st.one_of(st.none(), st.integers(1, 100)),
)
def test_images_fit_any_terminal(size: tuple[int, int], grid: tuple[int, int], columns: int, lines: int | None) -> None:
    width, height = fit_size(size, grid, (columns, lines))
    assert 1 <= width <= columns
    assert height >= 2
    if lines is not None and (width, height) != (1, 2):
        across = max(1, (columns + GAP) // (width + GAP))
        shelves = grid[0] * -(-grid[1] // across)
        assert shelves * (-(-height // 2) + GAP) - GAP <= lines


# Figures


def worker_of(at: float, evaluations: int, turns: int) -> WorkerStatus:
    raw = {"name": "w", "models": [], "max_batch": 16, "trajectories": 0, "pending_evaluations": 0, "jobs": 0}
    return WorkerStatus.from_json(
        {
            **raw,
            "reported_at": at,
            "evaluations": evaluations,
            "turns": turns,
            "images": 0,
            "slots": 0,
            "turn_seconds": 0.0,
        }
    )


def test_rates_are_differences_over_the_workers_own_clock() -> None:
    before = worker_of(100.0, 1000, 50)
    assert WorkerRates.between(before, worker_of(102.0, 1640, 90)) == WorkerRates(320.0, 20.0, 16.0)
    assert WorkerRates.between(before, worker_of(102.0, 1000, 50)) == WorkerRates(0.0, 0.0, None)
    assert WorkerRates.between(before, before) is None
    assert WorkerRates.between(before, worker_of(102.0, 10, 5)) is None


def test_durations_are_formatted_for_people() -> None:
    seconds = (0.04, 9.94, 9.96, 59.4, 59.6, 185, 3599.4, 3600, 7384, 7205, 86_400, 100_000)
    exact = ["0.0 s", "9.9 s", "10 s", "59 s", "1 min", "3 min 5 s", "59 min 59 s", "1 h", "2 h 3 min", "2 h"]
    assert [duration(each) for each in seconds] == [*exact, "1 d", "1 d 3 h"]
    rough = ["0 s", "10 s", "10 s", "59 s", "1 min", "3 min", "59 min", "1 h", "2 h", "2 h", "1 d", "1 d"]
    assert [age(each) for each in seconds] == rough


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b31m", "a\r\nb", "\x7f", "\u202eevil", "\u2028", "\x00"])
def test_no_printed_text_contains_control_characters(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)


# Tables


def table_lines(width: int, expendable: list[str], shortened: list[str] | None = None) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, _environ={})
    rows = [["0123456789", "sneaker", "12"], ["abcdefghij", "bag", "7"]]
    console.print(fit_table(console, ["id", "label", ">n"], rows, expendable, shortened or []))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_optional_columns_are_dropped_before_others_are_folded() -> None:
    assert table_lines(23, ["label", ">n"]) == [
        "id          label     n",
        "0123456789  sneaker  12",
        "abcdefghij  bag       7",
    ]
    assert table_lines(22, ["label", ">n"]) == ["id           n", "0123456789  12", "abcdefghij   7"]
    assert table_lines(12, ["label", ">n"]) == ["id", "0123456789", "abcdefghij"]


def test_long_texts_are_cut_before_columns_are_dropped() -> None:
    cut = table_lines(22, ["label", ">n"], ["id"])
    assert cut == ["id         label     n", "01234567…  sneaker  12", "abcdefgh…  bag       7"]
    assert table_lines(12, ["label"], ["id"]) == ["id         n", "0123456…  12", "abcdefg…   7"], (
        "8 characters are kept"
    )
    assert "".join(table_lines(5, ["label", ">n"])[1:]) == "0123456789abcdefghij", "what is left is folded, not cut"
