"""Peer (a): FastAPI and a diffusers pipeline behind a lock, the way tutorials do it.

python -m bench.peers.locked FOLDER PORT
"""

from __future__ import annotations

import sys
import threading

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel

from bench.peers.pipeline import ClassConditionalDDIM, Picture, png


class Body(BaseModel):
    """Fields as of denoised; others it is sent are ignored."""

    label: int
    seed: int
    steps: int = 20
    guidance_scale: float = 1.0


def application(folder: str) -> FastAPI:
    """One pipeline for everybody, one picture at a time."""
    app = FastAPI()
    pipeline = ClassConditionalDDIM(folder)
    lock = threading.Lock()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/generate")
    def generate(body: Body) -> Response:
        with lock:
            (image,) = pipeline([Picture(body.label, body.seed, body.steps, body.guidance_scale)])
        return Response(png(image), media_type="image/png")

    return app


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
