"""A folder of images: one sub-folder per class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from model.data import load_dataset
from model.errors import DataError


def picture(path: Path, colour: tuple[int, int, int] | int, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)
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


def test_the_middle_square_is_resized(tmp_path: Path) -> None:
    """A 24×8 picture of three 8×8 fields keeps the middle one."""
    wide = Image.new("RGB", (24, 8))
    for k, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        wide.paste(colour, (8 * k, 0, 8 * k + 8, 8))
    (tmp_path / "flags").mkdir()
    wide.save(tmp_path / "flags" / "tricolour.png")
    assert load_dataset(tmp_path, 4).images.shape == (1, 3, 4, 4)
    image = load_dataset(tmp_path, 8).images[0]
    assert image.permute(1, 2, 0).reshape(-1, 3).tolist() == [[0, 255, 0]] * 64


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    """EXIF orientation 6: the stored picture's left is the top of the upright one."""
    stored = Image.new("RGB", (8, 8), (255, 255, 255))
    stored.paste((0, 0, 0), (0, 0, 4, 8))  # the left half is dark
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    stored.save(tmp_path / "photos" / "turned.png", exif=exif)
    image = load_dataset(tmp_path, 8).images[0]
    assert image[0, :4].max().item() == 0
    assert image[0, 4:].min().item() == 255


def test_pictures_that_are_all_grey_have_one_channel(tmp_path: Path) -> None:
    picture(tmp_path / "grey" / "a.png", 7)
    picture(tmp_path / "grey" / "b.png", (9, 9, 9))
    data = load_dataset(tmp_path, 8)
    assert data.images.shape == (2, 1, 8, 8)
    assert data.images[:, 0, 0, 0].tolist() == [7, 9]


def test_one_coloured_picture_makes_all_of_them_coloured(tmp_path: Path) -> None:
    picture(tmp_path / "mixed" / "a.png", 7)
    picture(tmp_path / "mixed" / "b.png", (9, 9, 10))
    assert load_dataset(tmp_path, 8).images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"not a picture at all"])
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes) -> None:
    picture(tmp_path / "shoes" / "a.png", 7)
    broken = tmp_path / "shoes" / "b.png"
    broken.write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith(f"{broken} is no readable image (")
    assert message.endswith("): repair or remove it")


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shoes" / "a.png"
    path.parent.mkdir()
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert refusal(tmp_path).startswith(f"{path} is no readable image (")


def test_a_folder_that_is_not_there_or_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (tmp_path / "gone", file):
        message = refusal(path)
        assert message.startswith(f"no data set at {path}: no such folder")
        assert "--data /usr/share/datasets/fashion-mnist" in message


def test_an_empty_folder_says_what_to_put_there(tmp_path: Path) -> None:
    (tmp_path / "class without pictures").mkdir()
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path} holds neither IDX files nor sub-folders of images")
    assert "make one sub-folder per class, with .bmp, .gif, .jpeg, .jpg, .png" in message
