"""A folder of images: one sub-folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from denoised.model.errors import DataError
from denoised.model.training.datasets.sources import load_dataset


def picture(path: Path, color: tuple[int, int, int] | int, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(color, int) else "RGB", size, color).save(path)
    return path


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(folder, 8)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_sub_folders_are_the_classes_in_alphabetical_order(tmp_path: Path) -> None:
    picture(tmp_path / "pear" / "a.png", (10, 200, 30))
    picture(tmp_path / "apple" / "b.png", (200, 10, 30))
    picture(tmp_path / "apple" / "deep" / "c.PNG", (201, 10, 30))
    picture(tmp_path / ".cache" / "d.png", (1, 2, 3))
    (tmp_path / "apple" / "notes.txt").write_text("not a picture")
    (tmp_path / "README.md").write_text("not a class")
    data = load_dataset(tmp_path, 8)
    assert data.labels == ("apple", "pear")
    assert data.classes.tolist() == [0, 0, 1]
    assert data.images.shape == (3, 3, 8, 8)
    assert data.images.dtype == torch.uint8
    assert data.images[:, :, 0, 0].tolist() == [[200, 10, 30], [201, 10, 30], [10, 200, 30]]
    assert data.source == tmp_path.name


def test_what_other_programs_hide_is_no_data_and_is_reported_once(tmp_path: Path) -> None:
    """pytorch/vision#2831, SimpleTuner#94: previews and copies became classes or images."""
    picture(tmp_path / "pear" / "a.png", 1)
    folders = [".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", ".git", "$RECYCLE.BIN"]
    for name in folders:
        picture(tmp_path / name / "b.png", 2)
        picture(tmp_path / "pear" / name / "c.png", 3)
        picture(tmp_path / "pear" / "deep" / name / "d.png", 4)
    picture(tmp_path / "pear" / "._e.png", 5)
    (tmp_path / "pear" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "pear" / ".DS_Store").write_bytes(b"x")
    data = load_dataset(tmp_path, 8)
    assert (data.labels, len(data)) == (("pear",), 1)
    (line,) = data.skipped
    assert line.startswith("hidden files and folders: $RECYCLE.BIN, .git, .ipynb_checkpoints, .thumbnails, @eaDir and ")


def test_the_trash_of_a_file_server_is_no_data_but_a_class_may_begin_with_its_sign(tmp_path: Path) -> None:
    for name in ("#1", "@home", "$5"):
        picture(tmp_path / name / "a.png", 1)
        for trash in ("#recycle", "@Recycle", "#snapshot", "@tmp"):
            picture(tmp_path / name / trash / "b.png", 2)
            picture(tmp_path / trash / "c.png", 3)
    data = load_dataset(tmp_path, 8)
    assert (data.labels, len(data)) == (("#1", "$5", "@home"), 3)


def test_a_link_to_nothing_is_told_without_the_number_of_the_error(tmp_path: Path) -> None:
    picture(tmp_path / "pear" / "a.png", 1)
    (tmp_path / "pear" / "b.png").symlink_to(tmp_path / "gone.png")
    assert "b.png (No such file or directory)" in refusal(tmp_path)


def test_a_fifo_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    picture(tmp_path / "pear" / "a.png", 1)
    os.mkfifo(tmp_path / "pear" / "b.png")
    assert "b.png (not a regular file)" in refusal(tmp_path)


def test_class_folders_that_differ_in_normalization_alone_are_refused(tmp_path: Path) -> None:
    """A file system may keep both; a request could not tell them apart."""
    for name in ("caf\u00e9", "cafe\u0301", "tea"):
        picture(tmp_path / name / "a.png", 7)
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system normalizes names")
    assert "labels[0], labels[1] are the same name 'café'" in refusal(tmp_path)


def test_the_center_square_is_resized(tmp_path: Path) -> None:
    """Of a 24×8 image made of three 8×8 squares, the middle one is kept."""
    wide = Image.new("RGB", (24, 8))
    for k, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        wide.paste(color, (8 * k, 0, 8 * k + 8, 8))
    (tmp_path / "flags").mkdir()
    wide.save(tmp_path / "flags" / "tricolor.png")
    assert load_dataset(tmp_path, 4).images.shape == (1, 3, 4, 4)
    image = load_dataset(tmp_path, 8).images[0]
    assert image.permute(1, 2, 0).reshape(-1, 3).tolist() == [[0, 255, 0]] * 64


def test_images_that_are_all_gray_have_one_channel(tmp_path: Path) -> None:
    picture(tmp_path / "gray" / "a.png", 7)
    picture(tmp_path / "gray" / "b.png", (9, 9, 9))
    data = load_dataset(tmp_path, 8)
    assert data.images.shape == (2, 1, 8, 8)
    assert data.images[:, 0, 0, 0].tolist() == [7, 9]


def test_one_color_image_makes_all_images_rgb(tmp_path: Path) -> None:
    picture(tmp_path / "mixed" / "a.png", 7)
    picture(tmp_path / "mixed" / "b.png", (9, 9, 10))
    assert load_dataset(tmp_path, 8).images.shape == (2, 3, 8, 8)


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """Four good images of two classes and three broken files; returns the reason expected for each broken path."""
    for name in ("boots/a.png", "boots/b.png", "shoes/c.png", "shoes/d.png"):
        picture(tmp_path / name, 7)
    picture(tmp_path / "boots" / "torn.jpg", (9, 8, 7), (64, 64))
    torn = tmp_path / "boots" / "torn.jpg"
    torn.write_bytes(torn.read_bytes()[:-60])
    (tmp_path / "boots" / "empty.png").write_bytes(b"")
    (tmp_path / "shoes" / "text.png").write_text("not a picture at all")
    return {
        str(tmp_path / "boots" / "empty.png"): "none of PNG, JPEG",
        str(torn): "truncated",
        str(tmp_path / "shoes" / "text.png"): "none of PNG, JPEG",
    }


def test_broken_files_are_all_named_and_the_dataset_is_refused(tmp_path: Path, broken: dict[str, str]) -> None:
    message = refusal(tmp_path)
    assert message.startswith("3 of 7 files cannot be read: ")
    assert message.endswith(": repair or remove them")
    for path, reason in broken.items():
        assert f"{path} (" in message
        assert reason in message.split(f"{path} (")[1].split(")")[0]


def test_broken_files_can_be_skipped_and_are_still_named(tmp_path: Path, broken: dict[str, str]) -> None:
    data = load_dataset(tmp_path, 8, unreadable="skip")
    assert data.images.shape == (4, 1, 8, 8)
    assert data.classes.tolist() == [0, 0, 1, 1]
    assert data.labels == ("boots", "shoes")
    assert [line.split(" (")[0] for line in data.skipped] == list(broken)


def test_a_class_without_a_readable_image_is_refused_even_when_skipping(tmp_path: Path) -> None:
    picture(tmp_path / "boots" / "a.png", 7)
    picture(tmp_path / "shoes" / "b.png", 7).write_bytes(b"")
    with pytest.raises(DataError, match=r"shoes holds no readable image \(.*b\.png \(none of PNG"):
        load_dataset(tmp_path, 8, unreadable="skip")


def test_a_sub_folder_without_images_is_not_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "boots" / "a.png", 7)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "notes.txt").write_text("")
    assert load_dataset(tmp_path, 8).labels == ("boots",)


def test_transparent_images_show_the_background(tmp_path: Path) -> None:
    (tmp_path / "logos").mkdir()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "logos" / "a.png")
    assert load_dataset(tmp_path, 8).images[0, :, 0, 0].tolist() == [255], "white by default"
    assert load_dataset(tmp_path, 8, background="#102030").images[0, :, 0, 0].tolist() == [16, 32, 48]
    with pytest.raises(DataError, match=r"background = 'nacre' is not a color \(use a CSS color name or #rrggbb\)"):
        load_dataset(tmp_path, 8, background="nacre")


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (tmp_path / "gone", file):
        message = refusal(path)
        assert message.startswith(f"no dataset at {path}: no such folder")
        assert "--data /usr/share/datasets/fashion-mnist" in message


def test_the_error_for_an_empty_folder_says_what_to_put_there(tmp_path: Path) -> None:
    (tmp_path / "class without pictures").mkdir()
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path} holds neither IDX files nor sub-folders of images")
    assert "make one sub-folder per class, with .bmp, .gif, .jpeg, .jpg, .png" in message
