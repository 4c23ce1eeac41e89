"""Where results lie, and how much of them."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class ResultSettings:
    """Settings of results outside Redis.

    Attributes:
        url: a folder (file:///PATH) or a bucket (s3://BUCKET/PREFIX); None = they are in Redis.
        max_frame_bytes: of all frames; the oldest are deleted when there are more.
        max_picture_bytes: of all pictures and arrays; new jobs are refused when there would be more.
        max_resume_bytes: of all resume points; jobs go on without new ones when there would be more.
        link_seconds: how long the links are valid that pictures are redirected to; 0 = the server sends the pictures.
    """

    url: str | None = None
    max_frame_bytes: int = 20 * GIB
    max_picture_bytes: int = 100 * GIB
    max_resume_bytes: int = 10 * GIB
    link_seconds: int = 0
