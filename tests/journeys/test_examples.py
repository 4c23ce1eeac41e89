"""Every example in README and `docs/` is run, in the order of its page and in a folder that the page has for itself.

- `sh` must succeed, `console` (`$ ` before a command) must also print what stands there, and `python` what stands in a
  `text` block right after it. White space is not compared, … is anything. The shell's variables last for a page.
- One instance of `denoised serve` is behind 127.0.0.1:8000, with all the options of the pages' `denoised serve` lines.
  What stands above such a line on its page is run before it starts. A line that sets API keys starts a front end with
  these keys on the same store, behind the port that it names.
- Training sees a five-hundredth of the images.
- `<!-- not run: REASON -->` above a block leaves it out, for the reasons in `REASONS` alone.
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

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
RUN = ("sh", "console", "python")
FASHION_MNIST, SLOW = "needs Fashion-MNIST", "takes long"
REASONS = {
    FASHION_MNIST: "a Debian package; run by make test-slow where it is installed",
    "needs Docker": "test_containers.py reads the same files",
    "needs Prometheus": "test_alarms.py runs it where it is installed",
    "needs valkey-cli": "a Debian package, and a store that may be meddled with",
    "needs another machine": "two on one machine share the queue in tests/faults",
    SLOW: "run by make test-slow",
}
DATA = Path("/usr/share/datasets/fashion-mnist")
FEWER = 500  # times fewer images to train on
TINY = {"DENOISED_IMAGES": str(300_000 // FEWER), "DENOISED_EPOCHS": "1", "DENOISED_SAMPLES": "64"}
SERVE = re.compile(r"^(?:make serve|((?:DENOISED_\w+=\S+ )*)denoised serve(.*))$", re.MULTILINE)
END = "\x1e"  # between what two commands of a block print


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its fence; printed: what the page says that it prints; not_run: why."""

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
class Desk:
    """A page's folder, and the addresses behind the ports that the page names."""

    folder: Path
    ports: dict[str, str] = field(default_factory=dict)
    done: int = 0  # blocks that were run before the service started

    def address(self, text: str) -> str:
        """The text with real addresses for the documented ones."""
        for port, url in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", url.removeprefix("http://"))
        return text

    def run(self, script: str, where: str, *, strict: bool) -> str:
        """What a script of bash prints. It begins with the variables that the last one left."""
        folder = self.folder / "page"
        folder.mkdir(parents=True, exist_ok=True)
        state = shlex.quote(str(self.folder / "variables"))
        asked = f"DENOISED_URL={self.ports['8000']}" if "8000" in self.ports else ""
        begin = f"set -a; [ -f {state} ] && . {state}; {asked}"
        whole = f"{begin}\n{'set -e' if strict else ''}\n{script}\nexport -p > {state}"
        environment = os.environ | TINY | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", whole], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
        return done.stdout


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page; what one prints is taken for a part of it."""
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
                remark = re.fullmatch(r"<!-- not run: (.*) -->", lines[start - 2]) if start > 1 else None
                found.append(Block(page, start, language, text, remark[1] if remark else None))
            language, last_end = None, number
    assert language is None, f"{page}:{start}: a block without an end"
    return found


def examples(page: str) -> list[Block]:
    """Those that are run."""
    return [block for block in blocks(page) if block.language in RUN and block.not_run is None]


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with what it prints."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not parts[0].strip(), f"{block.where}: a console block begins with $"
    found = []
    for part in parts[1:]:
        command = re.match(r"(?:.*\\\n)*.*", part)
        assert command is not None
        found.append((command[0], part[command.end() :]))
    return found


def perform(block: Block, desk: Desk, keyed: Callable[[Path, str], str]) -> None:
    """Run an example and hold what it prints against its page."""
    if block.language == "console":
        pairs = commands(block)
        script = f"\nprintf '{END}'\n".join(f"{{ {_runnable(command, desk, keyed)}\n}} 2>&1" for command, _ in pairs)
        printed = desk.run(desk.address(script), block.where, strict=False).split(END)
        for (command, expected), got in zip(pairs, printed, strict=True):
            _compare(desk.address(expected), got, f"{block.where}: {command}")
        return
    script = _runnable(block.text, desk, keyed)
    if block.language == "python":
        script = f"cat > ../example.py <<'END OF EXAMPLE'\n{script}\nEND OF EXAMPLE\npython -W error ../example.py"
    got = desk.run(desk.address(script), block.where, strict=True)
    if block.printed is not None:
        _compare(desk.address(block.printed), got, block.where)


def _runnable(script: str, desk: Desk, keyed: Callable[[Path, str], str]) -> str:
    """The commands with fewer images; servers are not started but looked up, those with keys made when they come."""
    script = re.sub(r"--images (\d+)", lambda match: f"--images {int(match[1]) // FEWER}", script)
    served = list(SERVE.finditer(script))
    if not served:
        return script
    for match in served:
        if match[1]:
            desk.run(script[: match.start()], "above a server with keys", strict=True)
            options = shlex.split(match[2] or "", comments=True)
            port = options[options.index("--port") + 1] if "--port" in options else "8000"
            desk.ports[port] = keyed(desk.folder / "page", match[1])
            return _runnable(script[match.end() :], desk, keyed) or ":"
    return SERVE.sub(":", script)


def _compare(expected: str, got: str, where: str) -> None:
    pattern = ".*?".join(re.escape(re.sub(r"\s+", "", part)) for part in expected.split("…"))
    found = re.sub(r"\s+", "", got)
    assert re.fullmatch(pattern, found, flags=re.DOTALL), f"{where}\nthe page says: {expected}\nprinted: {got}"


def served_with(block: Block) -> list[str]:
    """The options of the `denoised serve` lines in a block that set no keys."""
    lines = [match for match in SERVE.finditer(block.text) if not match[1]]
    return [option for match in lines for option in shlex.split(match[2] or "", comments=True)]


def _given(options: list[str], desk: Desk) -> list[str]:
    """The same, with the folders of a page's desk."""
    return [str(desk.folder / "page" / option) if "/" in option else option for option in options]


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Desk]:
    """One for each page."""
    root = tmp_path_factory.mktemp("examples")
    (root / "repository").symlink_to(REPOSITORY)
    found = {page: Desk(root / Path(page).stem.lower()) for page in PAGES}
    for desk in found.values():
        (desk.folder / "page").mkdir(parents=True)
        for name in ("model", "docs"):
            (desk.folder / "page" / name).symlink_to(REPOSITORY / name)
    return found


@pytest.fixture(scope="module")
def site(desks: dict[str, Desk], start_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The one instance, with the models that the pages make."""
    options = {page: [option for block in examples(page) for option in served_with(block)] for page in desks}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda page: _prepare(page, desks[page]), [page for page in desks if options[page]]))
    given = [word for page, desk in desks.items() for word in _given(options[page], desk)]
    service = start_service(tmp_path_factory.mktemp("site") / "data", *given)
    for desk in desks.values():
        desk.ports["8000"] = service.url
    return service


def _prepare(page: str, desk: Desk) -> None:
    """Run what stands above the page's first `denoised serve`."""
    for block in examples(page):
        if SERVE.search(block.text):
            return
        perform(block, desk, _no_keys)
        desk.done += 1


def _no_keys(folder: Path, environment: str) -> str:
    raise AssertionError("a server with keys comes after the one without")


@pytest.fixture(scope="module")
def keyed(site: Any) -> Iterator[Callable[[Path, str], str]]:
    """Starts a front end with API keys beside the one of the site; gives its address."""
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
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)])
def test_every_example_of_a_page_does_what_the_page_says(
    page: str, site: Any, desks: dict[str, Desk], keyed: Callable[[Path, str], str]
) -> None:
    desk = desks[page]
    for block in examples(page)[desk.done :]:
        perform(block, desk, keyed)
        desk.done += 1


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.not_run == SLOW for block in blocks(page))])
def test_an_example_that_takes_long_does_what_the_page_says(
    page: str,
    site: Any,
    desks: dict[str, Desk],
    keyed: Callable[[Path, str], str],
    start_service: Callable[..., Any],
) -> None:
    desk = desks[page]
    for block in examples(page)[desk.done :]:
        perform(block, desk, keyed)
        desk.done += 1
    for block in blocks(page):
        if block.not_run == SLOW:
            perform(block, desk, keyed)
            if own := _given(served_with(block), desk):
                desk.ports["8000"] = start_service(desk.folder / "data", *own).url


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="Fashion-MNIST is not installed (Debian: dataset-fashion-mnist)")
@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page) if block.not_run == FASHION_MNIST],
    ids=lambda block: block.where,
)
def test_an_example_that_needs_fashion_mnist_runs_too(block: Block, desks: dict[str, Desk]) -> None:
    perform(block, desks[block.page], _no_keys)


def test_what_is_not_run_has_one_of_the_known_reasons() -> None:
    given = {block.where: block.not_run for page in PAGES for block in blocks(page) if block.not_run is not None}
    assert {where: reason for where, reason in given.items() if reason not in REASONS} == {}
    remarks = sum((REPOSITORY / page).read_text(encoding="utf-8").count("<!-- not run") for page in PAGES)
    assert remarks == len(given), "a remark that stands above no block"


def test_the_pictures_of_the_readme_are_written(site: Any, desks: dict[str, Desk]) -> None:
    folder = desks["README.md"].folder / "page"
    if not desks["README.md"].done:
        pytest.skip("the README's examples were not run")
    with Image.open(folder / "sneaker.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (28, 28))
    assert len(list((folder / "boots").glob("*.png"))) == 4


def test_a_page_that_says_what_is_not_so_fails(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    perform(Block("page", 1, "console", "$ WORD=here\n$ echo $WORD and there\nhere … there"), desk, _no_keys)
    perform(Block("page", 5, "python", "import os\nprint(os.environ['WORD'])", printed="here"), desk, _no_keys)
    for wrong in (
        Block("page", 1, "console", "$ echo here\nthere"),
        Block("page", 1, "console", "$ echo here\n"),
        Block("page", 1, "sh", "false\ntrue"),
        Block("page", 1, "python", "raise SystemExit(1)"),
        Block("page", 1, "python", "print(1)", printed="2"),
    ):
        with pytest.raises(AssertionError, match="page:1"):
            perform(wrong, desk, _no_keys)
