"""A hub's repositories: what they hold, and their files in the local cache.

The cache is that of `huggingface_hub` (HF_HOME), so models that other programs downloaded are used, and the other way
round:

    models--OWNER--NAME/refs/REVISION           a commit
    models--OWNER--NAME/snapshots/COMMIT/…      links
    models--OWNER--NAME/blobs/ETAG              contents
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download

from denoised.model.checkpoints.atomic import write_text_atomically
from denoised.model.errors import HubError
from denoised.model.hub.byte_progress import Advance
from denoised.model.hub.hub_errors import hub_errors
from denoised.model.hub.hub_name import COMMIT, HubName
from denoised.model.hub.large_files import LARGE, ByteCounter, download_large_file

LIBRARY = "denoised"


@dataclass(frozen=True)
class Description:
    """A model at one commit.

    Attributes:
        name: as it was asked for.
        commit: what its revision stands for.
        sizes: bytes of each file, by path.
        license: as its page names it; empty if it names none.
        gated: whether an account must accept conditions first.
    """

    name: HubName
    commit: str
    sizes: Mapping[str, int]
    license: str
    gated: bool


class Hub:
    """A hub and the local cache of its files.

    endpoint: its URL; None: HF_ENDPOINT, or the public hub.
    cache: the folder of the cache; None: HF_HUB_CACHE, or `hub` in HF_HOME.
    token: None: HF_TOKEN or the one that `hf auth login` stored. It is never printed.
    """

    def __init__(self, endpoint: str | None = None, cache: Path | None = None, token: str | None = None) -> None:
        self.endpoint = endpoint or constants.ENDPOINT
        self.cache = cache or Path(constants.HF_HUB_CACHE)
        self._token = token

    def describe(self, name: HubName) -> Description:
        """What the hub says about a model, by one request.

        Raises:
            HubError: if there is no such model or revision, access is refused, or the hub does not answer.
        """
        with hub_errors(name, self.endpoint):
            api = HfApi(endpoint=self.endpoint, token=self._token, library_name=LIBRARY)
            info = api.model_info(name.repository, revision=name.revision, files_metadata=True)
        if info.sha is None or not COMMIT.fullmatch(info.sha):
            raise HubError(f"{name}: {self.endpoint} names no commit")
        terms = info.card_data["license"] if info.card_data is not None and "license" in info.card_data else None
        sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
        return Description(name, info.sha, sizes, str(terms or ""), bool(info.gated))

    def cached_commit(self, name: HubName) -> str | None:
        """The commit that a revision stood for when it was last downloaded whole."""
        if name.commit is not None:
            return name.commit
        try:
            commit = self._reference(name).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def record_commit(self, name: HubName, commit: str) -> None:
        """Remember the commit of a revision whose files are all here."""
        if name.commit is None:
            path = self._reference(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, commit)

    def snapshot(self, name: HubName, commit: str) -> Path:
        """The folder with the files of a commit."""
        return self._folder(name) / "snapshots" / commit

    def download(self, description: Description, path: str, advance: Advance = lambda count: None) -> Path:
        """Download a file, unless it is here already.

        advance: is called with numbers of bytes that add up to the file's size.

        Raises:
            HubError: see `describe`; and for a large file whose content is not what the hub announced.
        """
        name, commit, size = description.name, description.commit, description.sizes.get(path, 0)
        target = self.snapshot(name, commit) / path
        if target.exists():
            advance(size)
            return target
        counter = ByteCounter(advance, size)
        with hub_errors(name, self.endpoint):
            if size >= LARGE:
                download_large_file(self._folder(name), name, commit, path, self.endpoint, self._token, counter)
            found = hf_hub_download(
                name.repository,
                path,
                revision=commit,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                token=self._token,
                library_name=LIBRARY,
                tqdm_class=counter.bar_class,
            )
        counter.complete()
        return Path(found)

    def _folder(self, name: HubName) -> Path:
        return self.cache / name.cache_folder

    def _reference(self, name: HubName) -> Path:
        return self._folder(name) / "refs" / name.revision
