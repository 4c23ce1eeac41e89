"""What clients request, and how their responses are counted."""

from __future__ import annotations

import asyncio
import io
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest
from PIL import Image

from bench.errors import BenchError
from bench.load.closed_loop import CompletedRequest, Round, check_png, closed_loop, counted_loop
from bench.load.workloads import REAL_TRAFFIC, THREE_STEP_COUNTS, ImageRequest


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, format="PNG")
    return file.getvalue()


def completed(began: float, ended: float, steps: int = 10) -> CompletedRequest:
    return CompletedRequest(ImageRequest(steps, guided=False, label=0, seed=0), began, ended)


@pytest.fixture
def serve_with() -> Iterator[Callable[[int, bytes], str]]:
    """Start a server that gives every POST the same answer; returns its address."""
    servers = []

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that disconnects is not an error here."""

    def start(status: int, content: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                """Nothing is printed."""

        server = Server(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_first_workload_has_its_three_step_counts_equally_often_and_no_guidance() -> None:
    requests = list(islice(THREE_STEP_COUNTS.requests(0), 300))
    assert Counter(request.steps for request in requests) == {10: 100, 20: 100, 50: 100}
    assert not any(request.guided for request in requests)


def test_real_traffic_has_every_step_count_once_per_cycle_and_guides_a_quarter() -> None:
    requests = list(islice(REAL_TRAFFIC.requests(0), 112))
    for cycle in (requests[:56], requests[56:]):
        assert sorted(request.steps for request in cycle) == list(range(5, 61))
        assert sum(request.guided for request in cycle) == 14


def test_requests_are_the_same_for_every_server_and_differ_between_rounds() -> None:
    first, again, other = (list(islice(REAL_TRAFFIC.requests(seed), 60)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_guidance_counts_as_two_rows_per_turn() -> None:
    assert ImageRequest(20, guided=True, label=1, seed=1).evaluations == 40
    assert THREE_STEP_COUNTS.rows_per_turn == 1.0
    assert REAL_TRAFFIC.rows_per_turn == pytest.approx(1.25, abs=0.05)


def test_a_round_counts_from_the_last_answer_before_it_to_the_last_in_it() -> None:
    result = Round("", start=10.0, end=20.0)
    result.completed += [completed(7, 9.5), completed(9, 11.5), completed(9, 19.5), completed(9, 20.5)]
    assert result.evaluations_per_second == 20 / (19.5 - 9.5)


def test_a_round_before_which_nothing_ended_counts_from_the_first_request() -> None:
    """Sixteen jobs that a server answers at once, 4 s after they were asked for: 40 evaluations/s, not 53."""
    result = Round("", start=1.0, end=5.0)
    result.completed += [completed(0.0, 4.0) for _ in range(16)]
    assert result.evaluations_per_second == 40


@pytest.mark.parametrize("start", [30.0, 31.7, 33.4])
def test_the_start_of_a_round_relative_to_a_servers_batches_makes_no_difference(start: float) -> None:
    """A server that does 16 jobs of 10 steps in 4 s each time: 40 evaluations/s, wherever the round cuts a batch."""
    result = Round("", start, start + 15.0)
    result.completed += [completed(4.0 * k, 4.0 * (k + 1) + 1e-6 * j) for k in range(20) for j in range(16)]
    random.Random(0).shuffle(result.completed)
    assert result.evaluations_per_second == pytest.approx(40, rel=1e-4)


def test_latency_is_the_median_of_those_with_so_many_steps_that_ended_in_the_round() -> None:
    result = Round("", start=0.0, end=10.0)
    result.completed += [completed(0, 1), completed(1, 3), completed(2, 9), completed(0, 5, steps=50), completed(3, 11)]
    assert result.latency(10) == 2
    assert result.latency(50) == 5
    assert result.latency() == 3.5


def test_a_round_in_which_nothing_ended_is_an_error() -> None:
    result = Round("http://there", start=0.0, end=1.0, completed=[completed(0, 2)])
    with pytest.raises(BenchError, match="http://there: no request ended within 1 s"):
        _ = result.evaluations_per_second
    with pytest.raises(BenchError, match="no request of 10 steps"):
        result.latency(10)


def test_only_a_png_of_the_right_size_passes() -> None:
    check_png(png(28, 28), (28, 28))
    for content, words in (
        (png(8, 28), "8×28 pixels, not 28×28"),
        (png(28, 28)[:-3], "not a PNG"),
        (b'{"detail": "sorry"}', "not a PNG"),
        (b"", "not a PNG"),
        (struct.pack(">8sI4s", b"\x89PNG\r\n\x1a\n", 13, b"IDAT") + png(28, 28)[16:], "not a PNG"),
    ):
        with pytest.raises(BenchError, match=words):
            check_png(content, (28, 28))


def test_clients_send_requests_one_after_another_until_the_time_is_up(serve_with: Callable[[int, bytes], str]) -> None:
    url = serve_with(200, png(28, 28))
    result = asyncio.run(closed_loop(url, 3, THREE_STEP_COUNTS.requests(0), warm_up=0.1, seconds=0.3))
    seen = {(a.request.steps, a.request.seed) for a in result.completed}
    sent = {(request.steps, request.seed) for request in islice(THREE_STEP_COUNTS.requests(0), len(result.completed))}
    assert seen == sent
    assert 0 < len(result.counted) < len(result.completed)
    assert max(a.began for a in result.completed) < result.end


def test_a_round_continues_until_enough_requests_are_answered() -> None:
    now = time.perf_counter()
    result = Round("", start=now - 10, end=now - 1, completed=[completed(now - 9, now - 2)], min_responses=2)
    assert result.is_running()
    assert result.end > now
    result.completed.append(completed(now - 9, now))
    result.end = now
    assert not result.is_running()


def test_a_round_starts_when_every_client_has_had_a_response() -> None:
    now = time.perf_counter()
    result = Round("", start=now - 10, end=now - 1, completed=[completed(now - 9, now - 8)], unanswered=2)
    result.note_first_response()
    assert result.is_running()
    assert (result.start, result.end) == (now - 10, now - 1)
    result.note_first_response()
    assert result.start >= now
    assert result.end == pytest.approx(result.start + 9)
    early = Round("", start=now + 100, end=now + 109, unanswered=1)
    early.note_first_response()
    assert early.start == now + 100, "the warm-up is longer"


def running_batch(clients: int, speed: float, seconds: float) -> list[CompletedRequest]:
    """A closed loop against a server that advances all requests together, with `speed` evaluations/s in all."""
    requests, now, done = THREE_STEP_COUNTS.requests(0), 0.0, list[CompletedRequest]()
    running = [(0.0, request := next(requests), float(request.steps)) for _ in range(clients)]
    while now < seconds:
        turns = min(left for _, _, left in running)
        now += turns * clients / speed
        for k, (began, request, left) in enumerate(running):
            running[k] = (began, request, left - turns)
            if left == turns:
                done.append(CompletedRequest(request, began, now))
                request = next(requests)
                running[k] = (now, request, float(request.steps))
    return done


def test_a_running_batch_is_counted_from_when_it_is_full_of_requests_at_all_stages() -> None:
    """Sixteen clients and 30 evaluations/s, as a text model has: from idle, a round of 15 s saw half of them."""
    done = running_batch(16, 30.0, 300.0)
    from_idle = Round("", 3.0, 18.0, done)
    assert from_idle.evaluations_per_second < 20
    start = max(each.ended for each in done if each.began == 0)
    assert Round("", start, start + 200.0, done).evaluations_per_second == pytest.approx(30, rel=0.05)


def test_a_counted_load_sends_each_request_once(serve_with: Callable[[int, bytes], str]) -> None:
    requests = list(islice(REAL_TRAFFIC.requests(0), 20))
    done = asyncio.run(counted_loop(serve_with(200, png(28, 28)), 4, requests))
    assert sorted(a.request.seed for a in done) == sorted(request.seed for request in requests)


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [(500, b"broken", "answered 500 .*broken"), (200, b"a page", "not a PNG"), (200, png(8, 8), "8×8")],
    ids=["refused", "not an image", "another size"],
)
def test_one_wrong_answer_ends_the_run(
    serve_with: Callable[[int, bytes], str], status: int, content: bytes, words: str
) -> None:
    url = serve_with(status, content)
    with pytest.raises(BenchError, match=words):
        asyncio.run(closed_loop(url, 3, THREE_STEP_COUNTS.requests(0), warm_up=0.0, seconds=30.0))


def test_a_missing_response_ends_the_run_at_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(BenchError, match=r"no image within 0.2 s"):
            asyncio.run(closed_loop(url, 1, THREE_STEP_COUNTS.requests(0), warm_up=0.0, seconds=30.0, timeout=0.2))


def test_an_unreachable_server_ends_the_run() -> None:
    with pytest.raises(BenchError, match="ConnectError"):
        asyncio.run(closed_loop("http://127.0.0.1:9", 2, THREE_STEP_COUNTS.requests(0), warm_up=0.0, seconds=30.0))


def test_requests_of_a_text_model_have_prompts_and_the_same_step_counts() -> None:
    workload = REAL_TRAFFIC.with_prompts(("a goat", "a rocket"), "emoji")
    found, plain = (list(islice(each.requests(3), 56)) for each in (workload, REAL_TRAFFIC))
    assert [(each.steps, each.guided, each.seed) for each in found] == [(e.steps, e.guided, e.seed) for e in plain]
    assert {each.prompt for each in found} == {"a goat", "a rocket"}
    assert found[0].body().keys() == {"model", "prompt", "seed", "steps", "guidance_scale", "sampler"}
    assert plain[0].body().keys() == {"label", "seed", "steps", "guidance_scale", "sampler"}
