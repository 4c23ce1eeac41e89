"""Peer (b): LitServe with request batching, at most 16 requests, 50 ms to wait for them.

Requests of one number of steps, and with or without guidance alike, share a batch of the network.

python -m bench.peers.batching FOLDER PORT [--device cuda] [--precision bfloat16] [--compile]
"""

# LitServe reads the annotations of these methods, so they are not to be postponed.

from typing import Any

import litserve
from fastapi.responses import Response
from PIL import Image

from bench.peers.network import Manner, parsed
from bench.peers.pipeline import ClassConditionalDDIM, Picture, png

MAX_BATCH_SIZE, BATCH_TIMEOUT = 16, 0.05
SIZES = (4, MAX_BATCH_SIZE, 2 * MAX_BATCH_SIZE)  # rows of the network for which it is compiled


class Generation(litserve.LitAPI):  # type: ignore[misc]
    """The steps of LitServe's own loop: decode, batch, predict, unbatch, encode."""

    def __init__(self, folder: str, manner: Manner, **settings: Any) -> None:
        super().__init__(**settings)
        self.folder = folder
        self.manner = manner

    def setup(self, device: str) -> None:
        """In the thread that calls `predict`."""
        self.pipeline = ClassConditionalDDIM(self.folder, self.manner, SIZES)

    def decode_request(self, request: dict[str, Any]) -> Picture:
        return Picture(request["label"], request["seed"], request["steps"], request["guidance_scale"])

    def batch(self, inputs: list[Picture]) -> list[Picture]:
        return list(inputs)

    def predict(self, x: list[Picture]) -> list[Image.Image]:
        images: dict[int, Image.Image] = {}
        for group in {picture.group for picture in x}:
            places = [k for k, picture in enumerate(x) if picture.group == group]
            images |= zip(places, self.pipeline([x[k] for k in places]), strict=True)
        return [images[k] for k in range(len(x))]

    def unbatch(self, output: list[Image.Image]) -> list[Image.Image]:
        return output

    def encode_response(self, output: Image.Image) -> Response:
        return Response(png(output), media_type="image/png")


def main(folder: str, port: int, manner: Manner) -> None:
    api = Generation(folder, manner, max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT, api_path="/generate")
    # One process on the CPU has the whole of it; a second would only compete for the cores, or for the one GPU.
    accelerator = manner.device.partition(":")[0]
    server = litserve.LitServer(api, accelerator=accelerator, devices=1, workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    given, how = parsed("folder", "port")
    main(given.folder, int(given.port), how)
