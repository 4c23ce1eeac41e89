"""Make the README's pictures with a running service: python ops/pictures.py [http://127.0.0.1:8000]"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from denoised import Client, Event, Frame

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
EACH, SEED, ENLARGED, GAP = 5, 11, 3, 2
FILM = {"label": "sneaker", "seed": 7, "steps": 20, "preview_every": 2, "preview": "both"}


def main() -> None:
    with Client(*sys.argv[1:2]) as client:
        PICTURES.mkdir(parents=True, exist_ok=True)
        save(garments(client), "garments.png")
        save(film(client), "film.png")


def garments(client: Client) -> list[list[Image.Image]]:
    """One column a class, one row a seed."""
    columns = [finished(client, {"label": label, "n": EACH, "seed": SEED})[1] for label in range(10)]
    return [[column[row] for column in columns] for row in range(EACH)]


def film(client: Client) -> list[list[Image.Image]]:
    """x_t above, x̂_0 below, and the picture at the end of both."""
    events, (picture,) = finished(client, FILM)
    frames = [event for event in events if isinstance(event, Frame)]
    rows = [[e.picture.convert("L") for e in frames if e.kind == kind] for kind in ("xt", "x0")]
    return [[*row, picture] for row in rows]


def finished(client: Client, request: dict[str, Any]) -> tuple[list[Event], list[Image.Image]]:
    events = list(client.stream(**request))
    job = client.job(events[-1].job)
    return events, [opened(client.image(image)) for image in job.images]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("L")


def save(rows: list[list[Image.Image]], name: str) -> None:
    width, height = rows[0][0].size
    step_x, step_y = width * ENLARGED + GAP, height * ENLARGED + GAP
    sheet = Image.new("L", (len(rows[0]) * step_x - GAP, len(rows) * step_y - GAP), 128)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            large = image.resize((width * ENLARGED, height * ENLARGED), Image.Resampling.NEAREST)
            sheet.paste(large, (x * step_x, y * step_y))
    sheet.save(PICTURES / name, optimize=True)
    print(PICTURES / name)


if __name__ == "__main__":
    main()
