"""Generate the README's images with a running server: python ops/pictures.py [http://127.0.0.1:8000]"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from denoised import Client, Event, Frame

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
ROWS, SEED, SCALE, GAP = 5, 11, 3, 2
DENOISING = {"label": "sneaker", "seed": 7, "steps": 20, "preview_every": 2, "preview": "both"}


def main() -> None:
    with Client(*sys.argv[1:2]) as client:
        PICTURES.mkdir(parents=True, exist_ok=True)
        save_grid(garments(client), "garments.png")
        save_grid(denoising(client), "film.png")


def garments(client: Client) -> list[list[Image.Image]]:
    """One column per class, one row per seed."""
    columns = [run_job(client, {"label": label, "n": ROWS, "seed": SEED})[1] for label in range(10)]
    return [[column[row] for column in columns] for row in range(ROWS)]


def denoising(client: Client) -> list[list[Image.Image]]:
    """A row of x_t above a row of x̂_0, each ending with the finished image."""
    events, (picture,) = run_job(client, DENOISING)
    frames = [event for event in events if isinstance(event, Frame)]
    rows = [[e.picture.convert("L") for e in frames if e.kind == kind] for kind in ("xt", "x0")]
    return [[*row, picture] for row in rows]


def run_job(client: Client, request: dict[str, Any]) -> tuple[list[Event], list[Image.Image]]:
    events = list(client.stream(**request))
    job = client.job(events[-1].job)
    return events, [grayscale(client.image(image)) for image in job.images]


def grayscale(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("L")


def save_grid(rows: list[list[Image.Image]], name: str) -> None:
    width, height = rows[0][0].size
    step_x, step_y = width * SCALE + GAP, height * SCALE + GAP
    sheet = Image.new("L", (len(rows[0]) * step_x - GAP, len(rows) * step_y - GAP), 128)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            large = image.resize((width * SCALE, height * SCALE), Image.Resampling.NEAREST)
            sheet.paste(large, (x * step_x, y * step_y))
    sheet.save(PICTURES / name, optimize=True)
    print(PICTURES / name)


if __name__ == "__main__":
    main()
