"""Listening clients count the events of a real server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from bench.load.closed_loop import closed_loop, mean_batch
from bench.load.event_listeners import count_types, listening_loop
from bench.load.servers import start_denoised, worker_pid
from bench.load.workloads import Workload


def test_events_are_counted_by_type_whatever_they_contain() -> None:
    events = [
        {"seq": 1, "type": "queued"},
        {"seq": 2, "type": "frame", "media_type": "image/png", "data": "dHlwZQ=="},
        {"seq": 3, "type": "frame", "media_type": "image/png", "data": ""},
        {"seq": 4, "type": "succeeded", "result": {"status": "succeeded", "label": "type"}},
    ]
    expected = Counter(queued=1, frame=2, succeeded=1)
    assert count_types("".join(json.dumps(event) for event in events).encode()) == expected
    assert count_types("".join(f"event: x\ndata: {json.dumps(event)}\n\n" for event in events).encode()) == expected


@pytest.mark.slow
def test_listeners_receive_every_frame_over_both_transports_and_jobs_report_their_batch(
    tmp_path: Path,
) -> None:
    workload = Workload("short", (2, 3))
    with start_denoised(tmp_path) as server:
        with_listeners, frames = asyncio.run(
            listening_loop(server.url, 2, workload.requests(0), warm_up=0.2, seconds=1.0)
        )
        without = asyncio.run(closed_loop(server.url, 2, workload.requests(1), warm_up=0.2, seconds=1.0))
        rows = asyncio.run(mean_batch(server.url, without.counted))
        assert worker_pid(server) > 1
    assert frames == 1.0
    assert with_listeners.evaluations_per_second > 0
    assert 1 <= rows <= 2
