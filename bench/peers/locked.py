"""Peer (a): FastAPI and a diffusers pipeline behind a lock, the way tutorials do it.

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

from bench.peers.network import Manner, parsed
from bench.peers.pipeline import ClassConditionalDDIM, Picture, png

SIZES = (1, 2)  # rows of a picture: without guidance and with it


class Body(BaseModel):
    """Fields as of denoised; others it is sent are ignored."""

    label: int
    seed: int
    steps: int = 20
    guidance_scale: float = 1.0


def application(folder: str, manner: Manner) -> FastAPI:
    """One pipeline for everybody, one picture at a time."""
    app = FastAPI()
    make = _in_one_thread(folder, manner) if manner.compiled else _in_any_thread(folder, manner)
    lock = threading.Lock()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/generate")
    def generate(body: Body) -> Response:
        with lock:
            image = make(Picture(body.label, body.seed, body.steps, body.guidance_scale))
        return Response(png(image), media_type="image/png")

    return app


def _in_any_thread(folder: str, manner: Manner) -> Callable[[Picture], Image.Image]:
    pipeline = ClassConditionalDDIM(folder, manner, SIZES)
    return lambda picture: pipeline([picture])[0]


def _in_one_thread(folder: str, manner: Manner) -> Callable[[Picture], Image.Image]:
    """The thread in which it is compiled: see `Compiled`."""
    thread = ThreadPoolExecutor(max_workers=1)
    pipeline = thread.submit(ClassConditionalDDIM, folder, manner, SIZES).result()
    return lambda picture: thread.submit(pipeline, [picture]).result()[0]


if __name__ == "__main__":
    given, how = parsed("folder", "port")
    uvicorn.run(application(given.folder, how), host="127.0.0.1", port=int(given.port), log_level="warning")
