"""Runs every example in README and `docs/`, in the order of its page and in a folder for each page.

- An `sh` block must succeed. A `console` block (`$ ` before each command) must also print the text below its commands,
  and a `python` block the text of a `text` block right after it. White space is not compared, and … matches anything.
  The shell's variables last for a page.
- One `denoised serve` listens in place of 127.0.0.1:8000, with the options of all `denoised serve` lines of the pages.
  The blocks above such a line on its page run before it starts. Pages whose lines have options, those of models that
  the page trains or converts, are slow tests. A line that sets API keys, or other variables, starts a
  front end with these on the same store, in place of the port that it names.
- Training uses a five-hundredth of the images.
- `<!-- not run: REASON -->` above a block skips it; only the reasons in `REASONS` are allowed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from denoised.app.launch.socket_address import SOCKET, socket_url
from tests.journeys.conftest import TIMEOUT, free_port, wait_for
from tests.requirements import needs_fashion_mnist

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
RUN = ("sh", "console", "python")
FASHION_MNIST, SLOW = "needs Fashion-MNIST", "takes long"
REASONS = {
    "downloads packages and takes hours": "test_text_run.py trains a tiny model on fake packages",
    FASHION_MNIST: "a Debian package; run by make test-slow where it is installed",
    "needs Docker": "test_containers.py reads the same files",
    "needs Prometheus": "test_alerts.py runs it where it is installed",
    "needs a cluster": "test_kubernetes.py checks the manifests",
    "needs valkey-cli": "a Debian package, and a store that may be changed",
    "needs another machine": "two on one machine share the queue in tests/faults",
    SLOW: "run by make test-slow",
    "needs a checkpoint of 2 GB": "test_text_model.py does the same with a small one",
    "takes a quarter of an hour": "test_consistency_tuning.py does the same with a small network",
    "takes half an hour": "test_judge.py and test_text_evaluation.py do the same with small networks",
    "takes an hour": "test_text_quality.py does the same with a small model",
    "needs a server with a models folder": "test_changing_models.py does the same",
    "needs a bucket": "test_result_store.py and test_results_outside.py do the same with a server on loopback",
    "takes a hundred trials": "test_level_fit.py does the same with a tiny model",
    "needs the internet": "test_hub.py does the same with a server on loopback",
}
TRAINING_DIVISOR = 500  # trains on that many times fewer images
TINY = {"DENOISED_IMAGES": str(300_000 // TRAINING_DIVISOR), "DENOISED_EPOCHS": "1", "DENOISED_SAMPLES": "64"}
SERVE = re.compile(r"^(?:make serve|((?:DENOISED_\w+=\S+ )*)denoised serve(.*))$", re.MULTILINE)
END = "\x1e"  # separates the outputs of two commands of a block


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: Of its opening fence.
        not_run: Why it is not run; None if it is.
        printed: The output that the page shows.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    printed: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Workspace:
    """The folder of a page, and the real addresses of the ports that the page names."""

    folder: Path
    ports: dict[str, str] = field(default_factory=dict)
    done: int = 0  # blocks that ran before the service started

    def address(self, text: str) -> str:
        """The text with the documented addresses replaced by the real ones."""
        for port, url in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", url.removeprefix("http://"))
        return text

    def run(self, script: str, where: str, *, strict: bool) -> str:
        """Run a bash script with the variables of the previous one, and return its output."""
        folder = self.folder / "page"
        folder.mkdir(parents=True, exist_ok=True)
        state = shlex.quote(str(self.folder / "variables"))
        server = f"DENOISED_URL={self.ports['8000']}" if "8000" in self.ports else ""
        begin = f"set -a; [ -f {state} ] && . {state}; {server}"
        whole = f"{begin}\n{'set -e' if strict else ''}\n{script}\nexport -p > {state}"
        environment = os.environ | TINY | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", whole], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
        return done.stdout


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page. A `text` block is the expected output of the block before it."""
    lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    start = last_end = 0
    language: str | None = None
    for number, line in enumerate(lines, 1):
        if language is None and (opened := re.fullmatch(r"```(\w*)", line)):
            language, start = opened[1], number
        elif language is not None and line == "```":
            text = "\n".join(lines[start : number - 1])
            if language == "text" and found and not "".join(lines[last_end : start - 1]).strip():
                found[-1] = Block(**{**vars(found[-1]), "printed": text})
            else:
                comment = re.fullmatch(r"<!-- not run: (.*) -->", lines[start - 2]) if start > 1 else None
                found.append(Block(page, start, language, text, comment[1] if comment else None))
            language, last_end = None, number
    assert language is None, f"{page}:{start}: a block without an end"
    return found


def examples(page: str) -> list[Block]:
    """The blocks of a page that are run."""
    return [block for block in blocks(page) if block.language in RUN and block.not_run is None]


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with its expected output."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not parts[0].strip(), f"{block.where}: a console block begins with $"
    found = []
    for part in parts[1:]:
        command = re.match(r"(?:.*\\\n)*.*", part)
        assert command is not None
        found.append((command[0], part[command.end() :]))
    return found


def run_example(block: Block, workspace: Workspace, keyed: Callable[[Path, str], str]) -> None:
    """Run an example and compare its output with the page."""
    if block.language == "console":
        pairs = commands(block)
        script = f"\nprintf '{END}'\n".join(
            f"{{ {_prepared_script(command, workspace, keyed)}\n}} 2>&1" for command, _ in pairs
        )
        printed = workspace.run(workspace.address(script), block.where, strict=False).split(END)
        for (command, expected), output in zip(pairs, printed, strict=True):
            _compare(workspace.address(expected), output, f"{block.where}: {command}")
        return
    script = _prepared_script(block.text, workspace, keyed)
    if block.language == "python":
        script = f"cat > ../example.py <<'END OF EXAMPLE'\n{script}\nEND OF EXAMPLE\npython -W error ../example.py"
    output = workspace.run(workspace.address(script), block.where, strict=True)
    if block.printed is not None:
        _compare(workspace.address(block.printed), output, block.where)


def _prepared_script(script: str, workspace: Workspace, keyed: Callable[[Path, str], str]) -> str:
    """The script with fewer training images. Servers run already; a front end with keys is started here."""
    script = re.sub(r"--images (\d+)", lambda match: f"--images {int(match[1]) // TRAINING_DIVISOR}", script)
    served = list(SERVE.finditer(script))
    if not served:
        return script
    for match in served:
        if match[1]:
            workspace.run(script[: match.start()], "above a server with keys", strict=True)
            options = shlex.split(match[2] or "", comments=True)
            port = options[options.index("--port") + 1] if "--port" in options else "8000"
            workspace.ports[port] = keyed(workspace.folder / "page", workspace.address(match[1]))
            return _prepared_script(script[match.end() :], workspace, keyed) or ":"
    return SERVE.sub(":", script)


def _compare(expected: str, output: str, where: str) -> None:
    pattern = ".*?".join(re.escape(re.sub(r"\s+", "", part)) for part in expected.split("…"))
    found = re.sub(r"\s+", "", output)
    assert re.fullmatch(pattern, found, flags=re.DOTALL), f"{where}\nthe page says: {expected}\nprinted: {output}"


def served_with(block: Block) -> list[str]:
    """The options of the `denoised serve` lines in a block, except lines that set API keys."""
    lines = [match for match in SERVE.finditer(block.text) if not match[1]]
    return [option for match in lines for option in shlex.split(match[2] or "", comments=True)]


def _options_of(page: str) -> list[str]:
    """The options with which the server of a page starts."""
    return [option for block in examples(page) for option in served_with(block)]


def _with_paths(options: list[str], workspace: Workspace) -> list[str]:
    """The options with their paths in the folder of the page."""
    return [str(workspace.folder / "page" / option) if "/" in option else option for option in options]


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workspace]:
    """One workspace per page."""
    root = tmp_path_factory.mktemp("examples")
    (root / "repository").symlink_to(REPOSITORY)
    found = {page: Workspace(root / Path(page).stem.lower()) for page in PAGES}
    for workspace in found.values():
        (workspace.folder / "page").mkdir(parents=True)
        for name in ("model", "docs"):
            (workspace.folder / "page" / name).symlink_to(REPOSITORY / name)
    return found


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest,
    workspaces: dict[str, Workspace],
    start_service: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The shared `denoised serve`, with the models that the selected pages create."""
    items = [item for item in request.session.items if item.path == request.path]
    selected = {getattr(item, "callspec").params.get("page") for item in items if hasattr(item, "callspec")}  # noqa: B009
    options = {page: _options_of(page) if page in selected else [] for page in workspaces}
    with ThreadPoolExecutor() as pool:
        list(
            pool.map(
                lambda page: _run_before_serving(page, workspaces[page]), [page for page in workspaces if options[page]]
            )
        )
    given = [word for page, workspace in workspaces.items() for word in _with_paths(options[page], workspace)]
    service = start_service(tmp_path_factory.mktemp("site") / "data", *given)
    for workspace in workspaces.values():
        workspace.ports["8000"] = service.url
        workspace.ports["9000"] = f"http://127.0.0.1:{free_port()}"  # of a receiver of webhooks
    return service


def _run_before_serving(page: str, workspace: Workspace) -> None:
    """Run the blocks above the page's first `denoised serve`."""
    for block in examples(page):
        if SERVE.search(block.text):
            return
        run_example(block, workspace, _no_keys)
        workspace.done += 1


def _no_keys(folder: Path, environment: str) -> str:
    raise AssertionError("a server with keys comes after the one without")


@pytest.fixture(scope="module")
def keyed(site: Any) -> Iterator[Callable[[Path, str], str]]:
    """Starts a front end with API keys on the store of `site`, and returns its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, environment: str) -> str:
        port = free_port()
        given = dict(pair.split("=", 1) for pair in shlex.split(environment))
        given["REDIS_URL"] = socket_url(site.data_dir / SOCKET)
        command = [sys.executable, "-m", "denoised", "api", "--port", str(port)]
        with (folder.parent / "keyed.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=folder, env=os.environ | given, stdout=log, stderr=log)
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or _is_ready(url), "the front end with keys")
        assert process.poll() is None, (folder.parent / "keyed.log").read_text()
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(TIMEOUT)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, verify=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if _options_of(page) else ()) for page in PAGES if examples(page)],
)
def test_the_examples_of_a_page_do_what_the_page_says(
    page: str, site: Any, workspaces: dict[str, Workspace], keyed: Callable[[Path, str], str]
) -> None:
    workspace = workspaces[page]
    for block in examples(page)[workspace.done :]:
        run_example(block, workspace, keyed)
        workspace.done += 1


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.not_run == SLOW for block in blocks(page))])
def test_an_example_that_takes_long_does_what_the_page_says(
    page: str,
    site: Any,
    workspaces: dict[str, Workspace],
    keyed: Callable[[Path, str], str],
    start_service: Callable[..., Any],
) -> None:
    workspace = workspaces[page]
    for block in examples(page)[workspace.done :]:
        run_example(block, workspace, keyed)
        workspace.done += 1
    for block in blocks(page):
        if block.not_run == SLOW:
            run_example(block, workspace, keyed)
            if own := _with_paths(served_with(block), workspace):
                workspace.ports["8000"] = start_service(workspace.folder / "data", *own).url


@pytest.mark.slow
@needs_fashion_mnist
@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page) if block.not_run == FASHION_MNIST],
    ids=lambda block: block.where,
)
def test_an_example_that_needs_fashion_mnist_runs_too(block: Block, workspaces: dict[str, Workspace]) -> None:
    run_example(block, workspaces[block.page], _no_keys)


def test_every_skipped_block_has_a_known_reason() -> None:
    given = {block.where: block.not_run for page in PAGES for block in blocks(page) if block.not_run is not None}
    assert {where: reason for where, reason in given.items() if reason not in REASONS} == {}
    comments = sum((REPOSITORY / page).read_text(encoding="utf-8").count("<!-- not run") for page in PAGES)
    assert comments == len(given), "a comment without a block below it"


def test_the_readme_writes_its_pictures(site: Any, workspaces: dict[str, Workspace]) -> None:
    folder = workspaces["README.md"].folder / "page"
    if not workspaces["README.md"].done:
        pytest.skip("the README's examples were not run")
    with Image.open(folder / "goat.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert len(list((folder / "goats").glob("*.png"))) == 4


def test_a_page_with_wrong_output_fails(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run_example(Block("page", 1, "console", "$ WORD=here\n$ echo $WORD and there\nhere … there"), workspace, _no_keys)
    run_example(Block("page", 5, "python", "import os\nprint(os.environ['WORD'])", printed="here"), workspace, _no_keys)
    for wrong in (
        Block("page", 1, "console", "$ echo here\nthere"),
        Block("page", 1, "console", "$ echo here\n"),
        Block("page", 1, "sh", "false\ntrue"),
        Block("page", 1, "python", "raise SystemExit(1)"),
        Block("page", 1, "python", "print(1)", printed="2"),
    ):
        with pytest.raises(AssertionError, match="page:1"):
            run_example(wrong, workspace, _no_keys)
