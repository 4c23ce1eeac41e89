"""Decoding of image files."""

from __future__ import annotations

import io

from PIL import Image

from denoised.client.errors import InvalidResponse


def decode_image(data: bytes) -> Image.Image:
    """The image in a PNG, WebP or JPEG file, fully loaded.

    Raises:
        InvalidResponse: if the data is not such a file.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "WEBP", "JPEG"])
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidResponse(f"the server sent no readable image ({error})") from error
    return image
