"""Peer (a): FastAPI and a diffusers pipeline behind a lock, as in tutorials.

python -m bench.peers.locked FOLDER PORT [--device cuda] [--precision bfloat16] [--compile]
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel

from bench.peers.network import NetworkOptions, parse_arguments
from bench.peers.pipeline import ImageParameters, encode_png
from bench.peers.text_pipeline import load_pipeline

SIZES = (1, 2)  # batch rows of an image, without and with guidance


class Body(BaseModel):
    """The fields of denoised's request that this server uses; others are ignored."""

    label: int = 0
    prompt: str | None = None
    seed: int
    steps: int = 20
    guidance_scale: float = 1.0


def application(folder: str, options: NetworkOptions) -> FastAPI:
    """One pipeline for all requests, one image at a time."""
    app = FastAPI()
    make_image = _in_one_thread(folder, options) if options.compiled else _in_any_thread(folder, options)
    lock = threading.Lock()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/generate")
    def generate(body: Body) -> Response:
        with lock:
            image = make_image(ImageParameters(body.label, body.seed, body.steps, body.guidance_scale, body.prompt))
        return Response(encode_png(image), media_type="image/png")

    return app


def _in_any_thread(folder: str, options: NetworkOptions) -> Callable[[ImageParameters], Image.Image]:
    pipeline = load_pipeline(folder, options, SIZES)
    return lambda parameters: pipeline([parameters])[0]


def _in_one_thread(folder: str, options: NetworkOptions) -> Callable[[ImageParameters], Image.Image]:
    """Run the pipeline in the thread that compiled it, as `CompiledNetwork` requires."""
    thread = ThreadPoolExecutor(max_workers=1)
    pipeline = thread.submit(load_pipeline, folder, options, SIZES).result()
    return lambda parameters: thread.submit(pipeline, [parameters]).result()[0]


if __name__ == "__main__":
    arguments, options = parse_arguments("folder", "port")
    uvicorn.run(application(arguments.folder, options), host="127.0.0.1", port=int(arguments.port), log_level="warning")
