"""Download a model from a hub, or find it in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from denoised.model.bounded_files import read_json
from denoised.model.checkpoints.folder_check import check_folder
from denoised.model.checkpoints.folders import MODEL_INDEX, find_files
from denoised.model.checkpoints.text_to_image.pipelines import is_text_pipeline
from denoised.model.errors import CheckpointError, HubError, HubUnreachable
from denoised.model.hub.byte_progress import Advance, format_bytes
from denoised.model.hub.file_selection import select_files, select_tokenizer
from denoised.model.hub.hub_name import HubName
from denoised.model.hub.repository import Description, Hub

SHOWN_DIGITS = 12  # of a commit
# Shows progress: takes a description and the number of bytes.
ShowProgress = Callable[[str, int], AbstractContextManager[Advance]]
Say = Callable[[str], None]


class Puller:
    """Downloads models.

    hub: where from, and the cache where to.
    say: takes a line for people.
    show_progress: see `ShowProgress`.
    """

    def __init__(self, hub: Hub, say: Say, show_progress: ShowProgress) -> None:
        self._hub, self._say, self._show_progress = hub, say, show_progress

    def find_cached(self, name: HubName) -> Path | None:
        """The folder of a model that is here with everything that serving it reads. Asks no network."""
        commit = self._hub.cached_commit(name)
        if commit is None:
            return None
        folder = self._hub.snapshot(name, commit)
        try:
            check_folder(folder)
        except CheckpointError:
            return None
        return folder

    def pull(self, name: HubName, precision: str) -> Path:
        """Download the newest commit of a revision, as far as it is not here. Returns the model's folder.

        precision: see `select_files`.

        Raises:
            HubError: if it cannot be downloaded, or if its pipeline is not served; the second before any weights.
        """
        try:
            description = self._hub.describe(name)
        except HubUnreachable as error:
            if (folder := self.find_cached(name)) is None:
                raise
            self._say(f"{error}; using the copy of commit {folder.name[:SHOWN_DIGITS]}")
            return folder
        index = self._read_index(description)
        try:
            paths = select_files(description.sizes, index, precision)
        except HubError as error:
            raise HubError(f"{name} {error}") from error
        folder = self._download(description, paths)
        try:
            check_folder(folder)
        except CheckpointError as error:
            raise HubError(f"{name} cannot be served: {error}") from error
        self._hub.record_commit(name, description.commit)
        return folder

    def pull_tokenizer(self, name: HubName) -> Path:
        """The folder of a tokenizer; downloaded unless a copy is here.

        Raises:
            HubError: if it cannot be downloaded, or if there is none.
        """
        if (commit := self._hub.cached_commit(name)) is not None:
            folder = self._hub.snapshot(name, commit)
            if all((folder / file).exists() for file in ("vocab.json", "merges.txt")):
                return folder
        description = self._hub.describe(name)
        paths = select_tokenizer(description.sizes)
        if not paths:
            raise HubError(f"{name} holds no tokenizer")
        return self._download(description, paths)

    def _read_index(self, description: Description) -> dict[str, object]:
        """`model_index.json`, checked; empty if there is none."""
        if str(MODEL_INDEX) not in description.sizes:
            return {}
        path = self._hub.download(description, str(MODEL_INDEX))
        try:
            if not is_text_pipeline(path.parent):
                find_files(path.parent)
            return read_json(path)
        except CheckpointError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise HubError(f"{description.name} is not served: {reason}") from error

    def _download(self, description: Description, paths: Sequence[str]) -> Path:
        folder = self._hub.snapshot(description.name, description.commit)
        sizes = {path: description.sizes[path] for path in paths}
        missing = sum(size for path, size in sizes.items() if not (folder / path).exists())
        self._say(announcement(description, len(sizes), sum(sizes.values()), missing))
        if missing:
            check_disk(self._hub.cache, missing)
            with self._show_progress(description.name.repository, sum(sizes.values())) as advance:
                for path in paths:
                    self._hub.download(description, path, advance)
        return folder


def announcement(description: Description, files: int, size: int, missing: int) -> str:
    """One line: which commit, how much, how much of it is missing here, and under which license."""
    terms = f"license: {description.license}" if description.license else "no license given"
    gated = ", gated" if description.gated else ""
    state = f"{format_bytes(missing)} to download" if missing else "all here already"
    return (
        f"{description.name} at commit {description.commit[:SHOWN_DIGITS]}: {files} files, {format_bytes(size)}, "
        f"{state}; {terms}{gated}"
    )


def check_disk(folder: Path, needed: int) -> None:
    """Check that a disk has room for a number of bytes.

    Raises:
        HubError: if it does not.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise HubError(
            f"{folder}: {format_bytes(needed)} are needed and {format_bytes(free)} are free: free some, or set HF_HOME "
            "to a folder on another disk"
        )
