"""Clients who watch: what they make of the events that a real server sends."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

from bench.following import follow_loop, types
from bench.load import Load, closed_loop, mean_batch
from bench.servers import denoised, worker_of


def test_events_are_counted_by_their_types_whatever_they_hold() -> None:
    events = [
        {"seq": 1, "type": "queued"},
        {"seq": 2, "type": "frame", "media_type": "image/png", "data": "dHlwZQ=="},
        {"seq": 3, "type": "frame", "media_type": "image/png", "data": ""},
        {"seq": 4, "type": "succeeded", "result": {"status": "succeeded", "label": "type"}},
    ]
    expected = Counter(queued=1, frame=2, succeeded=1)
    assert types("".join(json.dumps(event) for event in events).encode()) == expected
    assert types("".join(f"event: x\ndata: {json.dumps(event)}\n\n" for event in events).encode()) == expected


def test_listeners_of_a_server_get_every_frame_over_both_transports_and_its_jobs_name_their_batch(
    tmp_path: Path,
) -> None:
    load = Load("short", (2, 3))
    with denoised(tmp_path) as server:
        watched, share = asyncio.run(follow_loop(server.url, 2, load.asks(0), warm_up=0.2, seconds=1.0))
        quiet = asyncio.run(closed_loop(server.url, 2, load.asks(1), warm_up=0.2, seconds=1.0))
        rows = asyncio.run(mean_batch(server.url, quiet.counted))
        assert worker_of(server) > 1
    assert share == 1.0
    assert watched.evaluations_per_second > 0
    assert 1 <= rows <= 2
