"""Images are written to a folder that was checked before, and never over a file that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from denoised.cli.output_folder import MAX_NAME_BYTES, OutputFolder, file_name


def test_an_existing_file_is_kept_and_the_same_image_is_written_once(tmp_path: Path) -> None:
    """invoke-ai/InvokeAI#19: the same seed with another sampler overwrote the earlier picture."""
    folder = OutputFolder(tmp_path / "new")
    names = [folder.save("ankle boot", 7, "png", data).name for data in (b"a", b"b", b"a", b"c", b"b")]
    assert names == [
        "ankle-boot-7.png",
        "ankle-boot-7-2.png",
        "ankle-boot-7.png",
        "ankle-boot-7-3.png",
        "ankle-boot-7-2.png",
    ]
    assert [path.read_bytes() for path in sorted((tmp_path / "new").iterdir())] == [b"b", b"c", b"a"]


def test_nothing_is_written_through_a_link_or_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a-1.png").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a-1-2.png").mkdir()
    assert OutputFolder(tmp_path).save("a", 1, "png", b"x") == tmp_path / "a-1-3.png"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("ankle boot", "ankle-boot"),
        ("ботинок", "ботинок"),
        ("../etc", "etc"),
        ("-rf", "rf"),
        ("…", "image"),
        ("a\nb", "a-b"),
    ],
)
def test_a_label_as_a_file_name(label: str, name: str) -> None:
    assert file_name(label) == name
    assert len(file_name(label * 1000).encode()) <= MAX_NAME_BYTES


def test_a_folder_that_cannot_be_used_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "file", "is a file: name a folder"),
        (tmp_path / "file" / "deep", "cannot be written"),
        (Path("/proc/none"), "cannot be written"),
    ):
        with pytest.raises(OSError, match=reason):
            OutputFolder(path)


def test_generate_submits_nothing_if_it_cannot_write(url: str, fake_worker: Any, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from denoised.cli.main import cli

    (tmp_path / "file").touch()
    outcome = CliRunner().invoke(cli, ["generate", "--url", url, "--out", str(tmp_path / "file")])
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert outcome.stderr == f"denoised generate: --out {tmp_path / 'file'} is a file: name a folder\n"
    listed = CliRunner().invoke(cli, ["jobs", "--url", url])
    assert listed.stdout == ""
