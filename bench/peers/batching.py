"""Peer (b): LitServe with request batching: at most 16 requests, collected for up to 50 ms.

Requests with equal step counts, all with or all without guidance, share a batch of the network.

python -m bench.peers.batching FOLDER PORT [--device cuda] [--precision bfloat16] [--compile]
"""

# LitServe reads the annotations of these methods, so their evaluation must not be postponed.

from typing import Any

import litserve
from fastapi.responses import Response
from PIL import Image

from bench.peers.network import NetworkOptions, parse_arguments
from bench.peers.pipeline import ImageParameters, encode_png
from bench.peers.text_pipeline import load_pipeline

MAX_BATCH_SIZE, BATCH_TIMEOUT = 16, 0.05
SIZES = (4, MAX_BATCH_SIZE, 2 * MAX_BATCH_SIZE)  # batch sizes that the network is compiled for


class BatchingApi(litserve.LitAPI):  # type: ignore[misc]
    """The hooks that LitServe's loop calls: decode, batch, predict, unbatch, encode."""

    def __init__(self, folder: str, options: NetworkOptions, **settings: Any) -> None:
        super().__init__(**settings)
        self.folder = folder
        self.network_options = options

    def setup(self, device: str) -> None:
        """Load the pipeline; LitServe calls this in the thread that calls `predict`."""
        self.pipeline = load_pipeline(self.folder, self.network_options, SIZES)

    def decode_request(self, request: dict[str, Any]) -> ImageParameters:
        fields = (request["seed"], request["steps"], request["guidance_scale"], request.get("prompt"))
        return ImageParameters(request.get("label", 0), *fields)

    def batch(self, inputs: list[ImageParameters]) -> list[ImageParameters]:
        return list(inputs)

    def predict(self, x: list[ImageParameters]) -> list[Image.Image]:
        images: dict[int, Image.Image] = {}
        for group in {parameters.group for parameters in x}:
            indices = [k for k, parameters in enumerate(x) if parameters.group == group]
            images |= zip(indices, self.pipeline([x[k] for k in indices]), strict=True)
        return [images[k] for k in range(len(x))]

    def unbatch(self, output: list[Image.Image]) -> list[Image.Image]:
        return output

    def encode_response(self, output: Image.Image) -> Response:
        return Response(encode_png(output), media_type="image/png")


def main(folder: str, port: int, options: NetworkOptions) -> None:
    api = BatchingApi(folder, options, max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT, api_path="/generate")
    # One worker process: a second would only compete for the cores, or for the GPU.
    accelerator = options.device.partition(":")[0]
    server = litserve.LitServer(api, accelerator=accelerator, devices=1, workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    arguments, options = parse_arguments("folder", "port")
    main(arguments.folder, int(arguments.port), options)
