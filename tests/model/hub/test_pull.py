"""`denoised pull` and `--model OWNER/NAME` against a server of the hub's API: what is asked for, stored and refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from denoised.model.checkpoints.folders import model_name
from denoised.model.errors import HubError, HubUnreachable
from denoised.model.hub import large_files, pull, repository
from denoised.model.hub.byte_progress import format_bytes, line_progress
from denoised.model.hub.hub_name import HubName
from denoised.model.hub.model_sources import resolve_models
from denoised.model.hub.pull import Puller
from denoised.model.hub.repository import Hub
from tests.hub_server import HubRepository, HubServer, hub_server, read_folder
from tests.text_pipelines import save_pipeline

NAME = HubName("owner/tiny")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository as they are: the pipeline in two precisions, pickles, code, pictures, other programs' files."""
    folder, half = tmp_path_factory.mktemp("full"), tmp_path_factory.mktemp("half")
    save_pipeline(folder)
    save_pipeline(half, variant="fp16")
    extra = {
        "README.md": b"# Tiny",
        "pipeline.py": b"raise SystemExit('was run')",
        "unet/unet.py": b"raise SystemExit('was run')",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "v1-5-pruned.safetensors": b"one file",
        "v1-5-pruned.ckpt": b"pickle",
        "safety_checker/config.json": b"{}",
        "safety_checker/model.safetensors": b"weights",
        "feature_extractor/preprocessor_config.json": b"{}",
        "unet/model.onnx": b"other",
    }
    return {**extra, **read_folder(half), **read_folder(folder)}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    with hub_server() as server:
        server.repositories["owner/tiny"] = HubRepository(dict(files))
        yield server


class Records:
    """What a puller said and showed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shown: list[int] = []
        self.total = 0

    @contextmanager
    def show_progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        self.total = total
        yield self.shown.append


def puller(url: str, cache: Path, token: str | None = None) -> tuple[Puller, Records]:
    records = Records()
    return Puller(Hub(url, cache, token), records.lines.append, records.show_progress), records


@pytest.mark.parametrize("text", ["owner/tiny", "a/b.c-d_e", "owner/tiny@v1.0", "owner/tiny@refs/pr/3"])
def test_names_on_the_hub(text: str) -> None:
    assert str(HubName.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "tiny",
            "./owner/tiny",
            "/owner/tiny",
            "a/b/c",
            "owner/..",
            "../tiny",
            "a--b/c",
            "owner/tiny@",
            "owner/tiny/",
        ),
        *("owner/tiny@../x", "owner/tiny@-x", "owner/tiny@a b", "owner/ tiny", "ownér/tiny", "o/.x.", ""),
        f"owner/{'x' * 96}",
    ],
)
def test_other_texts_are_paths(text: str) -> None:
    assert HubName.parse(text) is None


def test_what_is_served_is_downloaded_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    pulled, records = puller(hub.url, tmp_path)
    folder = pulled.pull(NAME, "float32")
    assert set(read_folder(folder)) == {
        "model_index.json",
        "unet/config.json",
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    } | {path for path in read_folder(folder) if path.startswith("tokenizer/")}
    assert read_folder(folder) == {path: hub.repositories["owner/tiny"].files[path] for path in read_folder(folder)}
    assert sorted(hub.downloads()) == sorted(read_folder(folder))
    assert sum(records.shown) == records.total == sum(len(content) for content in read_folder(folder).values())


def test_the_commit_the_size_and_the_license_are_said_before_the_weights(hub: HubServer, tmp_path: Path) -> None:
    pulled, records = puller(hub.url, tmp_path)
    commit = hub.repositories["owner/tiny"].commit
    folder = pulled.pull(NAME, "float32")
    size = format_bytes(records.total)
    assert records.lines[0].startswith(f"owner/tiny at commit {commit[:12]}: ")
    assert f"files, {size}, " in records.lines[0]
    assert records.lines[0].endswith(" to download; license: openrail++")
    assert folder == tmp_path / "models--owner--tiny" / "snapshots" / commit
    assert model_name(folder) == "tiny"


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_takes_the_small_weights(hub: HubServer, tmp_path: Path, precision: str) -> None:
    folder = puller(hub.url, tmp_path)[0].pull(NAME, precision)
    weights = {path for path in read_folder(folder) if path.endswith(".safetensors")}
    assert weights == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }


def test_weights_in_half_precision_alone_serve_any(hub: HubServer, tmp_path: Path) -> None:
    contents = hub.repositories["owner/tiny"].files
    for path in [path for path in contents if path.endswith("model.safetensors")]:
        del contents[path]
    folder = puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert (folder / "unet/diffusion_pytorch_model.fp16.safetensors").exists()


def test_a_model_in_the_cache_is_used_without_any_request(hub: HubServer, tmp_path: Path) -> None:
    folder = puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    hub.requests.clear()
    commit = hub.repositories["owner/tiny"].commit
    for text in ("owner/tiny", f"owner/tiny@{commit}"):
        assert resolve_models([text], lambda: puller(hub.url, tmp_path)[0], "float32") == [folder]
    assert hub.requests == []


def test_pull_asks_for_a_newer_commit_and_downloads_what_changed(hub: HubServer, tmp_path: Path) -> None:
    first = puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    contents = hub.repositories["owner/tiny"].files
    contents["scheduler/scheduler_config.json"] = contents["scheduler/scheduler_config.json"] + b"\n"
    hub.requests.clear()
    second = puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert second != first
    assert "scheduler/scheduler_config.json" in hub.downloads()
    assert UNET not in hub.downloads()
    assert puller(hub.url, tmp_path)[0].find_cached(NAME) == second
    assert puller(hub.url, tmp_path)[0].find_cached(HubName(NAME.repository, first.name)) == first


def test_without_the_hub_pull_uses_the_copy_and_says_so(hub: HubServer, tmp_path: Path) -> None:
    folder = puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    pulled, records = puller(url := "http://127.0.0.1:9", tmp_path)
    assert pulled.pull(NAME, "float32") == folder
    assert records.lines[0].endswith(f"using the copy of commit {folder.name[:12]}")
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        puller(url, tmp_path)[0].pull(HubName("owner/other"), "float32")


def test_a_folder_wins_over_the_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    assert resolve_models(["owner/tiny"], lambda: puller(hub.url, tmp_path)[0], "float32") == [Path("owner/tiny")]
    assert resolve_models(["./gone/tiny"], lambda: puller(hub.url, tmp_path)[0], "float32") == [Path("./gone/tiny")]
    assert hub.requests == []


@pytest.mark.parametrize("lost", [UNET, "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
def test_a_model_that_lacks_a_file_is_completed(hub: HubServer, tmp_path: Path, lost: str) -> None:
    folder = puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    (folder / lost).resolve().unlink()
    (folder / lost).unlink()
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    assert puller(hub.url, tmp_path)[0].find_cached(NAME) is None
    hub.requests.clear()
    assert resolve_models(["owner/tiny"], lambda: puller(hub.url, tmp_path)[0], "float32") == [folder]
    assert hub.downloads()[0] == lost


@pytest.fixture
def small_large_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few kilobytes count as large and are written in small chunks; a cut costs no time."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(repository, "LARGE", 2048)
    monkeypatch.setattr(large_files, "PAUSE", 0.0)
    monkeypatch.setattr(large_files, "MAX_CUTS", 1)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


def test_after_a_cut_the_download_goes_on_where_it_stopped(
    hub: HubServer, tmp_path: Path, small_large_files: None
) -> None:
    hub.cut_after[UNET] = [5000, 3000]
    pulled, records = puller(hub.url, tmp_path)
    folder = pulled.pull(NAME, "float32")
    content = hub.repositories["owner/tiny"].files[UNET]
    assert (folder / UNET).read_bytes() == content
    ranges = [start for method, path, start in hub.requests if method == "GET" and path.endswith(UNET)]
    assert ranges == [None, "bytes=5000-", "bytes=8000-"]
    assert sum(records.shown) == records.total


def test_a_killed_download_goes_on_where_it_stopped(
    hub: HubServer, tmp_path: Path, small_large_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut_after[UNET] = [5000]

    def die(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.time.sleep", die)
        with pytest.raises(KeyboardInterrupt):
            puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert puller(hub.url, tmp_path)[0].find_cached(NAME) is None
    hub.requests.clear()
    folder = puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert (folder / UNET).read_bytes() == hub.repositories["owner/tiny"].files[UNET]
    ranges = [start for method, path, start in hub.requests if method == "GET" and path.endswith(UNET)]
    assert ranges == ["bytes=5000-"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_connection_that_is_cut_for_ever_ends_the_program(
    hub: HubServer, tmp_path: Path, small_large_files: None
) -> None:
    hub.cut_after[UNET] = [0] * 100
    with pytest.raises(HubUnreachable, match="owner/tiny"):
        puller(hub.url, tmp_path)[0].pull(NAME, "float32")


def test_damaged_content_is_removed(hub: HubServer, tmp_path: Path, small_large_files: None) -> None:
    hub.damaged.add(UNET)
    with pytest.raises(HubError, match=f"{UNET} arrived damaged and was removed: run the command again"):
        puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    hub.damaged.clear()
    assert puller(hub.url, tmp_path)[0].pull(NAME, "float32")


def test_a_gated_model_says_what_to_do(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["owner/tiny"].gated = True
    for token in (None, "hf_wrong"):
        with pytest.raises(HubError) as caught:
            puller(hub.url, tmp_path, token)[0].pull(NAME, "float32")
        assert str(caught.value) == (
            f"owner/tiny is gated: accept its conditions on {hub.url}/owner/tiny, then set HF_TOKEN to a token of that "
            "account"
        )
    pulled, records = puller(hub.url, tmp_path, "hf_right")
    pulled.pull(NAME, "float32")
    assert records.lines[0].endswith("license: openrail++, gated")


def test_names_and_revisions_that_are_not_there(hub: HubServer, tmp_path: Path) -> None:
    expected = {
        HubName("owner/none"): f"there is no model owner/none on {hub.url} (a private one needs HF_TOKEN)",
        HubName("owner/tiny", "v9"): "owner/tiny has no revision 'v9'",
    }
    for name, message in expected.items():
        with pytest.raises(HubError) as caught:
            puller(hub.url, tmp_path)[0].pull(name, "float32")
        assert str(caught.value) == message
    with pytest.raises(HubError, match=r"^--model owner/none is not a folder here; on the hub: there is no model"):
        resolve_models(["owner/none"], lambda: puller(hub.url, tmp_path)[0], "float32")


def test_a_private_model_needs_the_token(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["owner/tiny"].private = True
    with pytest.raises(HubError, match="needs HF_TOKEN"):
        puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert puller(hub.url, tmp_path, "hf_right")[0].pull(NAME, "float32")


@pytest.mark.parametrize(
    ("class_name", "reason"),
    [("FluxPipeline", "'FluxPipeline' is a flow-matching transformer"), ("KolorsPipeline", "is a Kolors model")],
)
def test_a_pipeline_that_is_not_served_is_refused_before_its_weights(
    hub: HubServer, tmp_path: Path, class_name: str, reason: str
) -> None:
    contents = hub.repositories["owner/tiny"].files
    contents["model_index.json"] = json.dumps({"_class_name": class_name, "unet": ["diffusers", "X"]}).encode()
    with pytest.raises(HubError, match=f"^owner/tiny is not served: .*{reason}"):
        puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert hub.downloads() == ["model_index.json"]


def test_pickles_alone_are_refused_before_anything_is_downloaded(hub: HubServer, tmp_path: Path) -> None:
    contents = hub.repositories["owner/tiny"].files
    for path in [path for path in contents if path.endswith(".safetensors")]:
        del contents[path]
    with pytest.raises(HubError, match=r"^owner/tiny has its weights as pickles alone, which can run code: convert"):
        puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert hub.downloads() == ["model_index.json"]


def test_a_full_disk_is_said_before_the_download(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> Any:
        return type("usage", (), {"free": 1000})

    monkeypatch.setattr(pull.shutil, "disk_usage", usage)
    with pytest.raises(HubError, match=r"are needed and 1.0 kB are free: free some, or set HF_HOME"):
        puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert hub.downloads() == ["model_index.json"]


def test_a_model_of_pixels_at_the_root(hub: HubServer, tmp_path: Path, repository: Path) -> None:
    zoo = read_folder(repository / "model/zoo/digits")
    contents = {path.removeprefix("unet/"): content for path, content in zoo.items()}
    contents["diffusion_pytorch_model.bin"] = b"pickle"
    contents["scheduler_config.json"] = contents.pop("scheduler/scheduler_config.json")
    hub.repositories["owner/digits"] = HubRepository(contents)
    folder = puller(hub.url, tmp_path)[0].pull(HubName("owner/digits"), "float32")
    assert set(read_folder(folder)) == {
        "model_index.json",
        "model_card.json",
        "config.json",
        "scheduler_config.json",
        "diffusion_pytorch_model.safetensors",
    }


def test_sharded_weights_come_with_their_index(hub: HubServer, tmp_path: Path) -> None:
    contents = hub.repositories["owner/tiny"].files
    content = contents.pop(UNET)
    del contents["unet/diffusion_pytorch_model.fp16.safetensors"]
    shards = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for shard in shards:
        contents[f"unet/{shard}"] = content
    index = {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}
    contents["unet/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(index).encode()
    folder = puller(hub.url, tmp_path)[0].pull(NAME, "float32")
    assert {f"unet/{shard}" for shard in shards} < set(read_folder(folder))


def test_a_tokenizer_alone(hub: HubServer, tmp_path: Path, files: dict[str, bytes]) -> None:
    tokenizer = {path.removeprefix("tokenizer/"): each for path, each in files.items() if path.startswith("tokenizer/")}
    hub.repositories["openai/clip"] = HubRepository({**tokenizer, "model.safetensors": b"weights", "x.py": b""})
    folder = puller(hub.url, tmp_path)[0].pull_tokenizer(HubName("openai/clip"))
    assert set(read_folder(folder)) == set(tokenizer)


def test_progress_without_a_terminal_is_a_line_at_the_end() -> None:
    lines: list[str] = []
    advance = line_progress(lines.append, "owner/tiny", 2_000_000)
    advance(1_000_000)
    assert lines == []
    advance(1_000_000)
    assert lines[0].startswith("owner/tiny: 2.0 MB of 2.0 MB (100 %), ")


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 bytes"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (5_214_865_159, "5.2 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text
