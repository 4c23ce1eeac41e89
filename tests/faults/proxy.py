"""A TCP proxy that cuts, slows and silences what passes through it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time


class Proxy:
    """Between clients and a port on this machine.

    delay: seconds by which each chunk is delayed.
    refusing: new connections are closed at once.
    silent: new connections are accepted, but nothing passes.
    refusal: an error reply, such as "BUSY …", that every command gets instead of reaching Redis.
    breaking_at: the first chunk from a client that contains this does not arrive; every connection is cut instead, and
        new ones are refused.

    `cut` closes every connection. `forget` silently drops everything on the present connections, like a router that was
    restarted.
    """

    def __init__(self, to_port: int) -> None:
        self.delay = 0.0
        self.refusing = False
        self.refusal: str | None = None
        self.breaking_at: bytes | None = None
        self._flowing = threading.Event()
        self._flowing.set()
        self._never = threading.Event()
        self._to_port = to_port
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._forgotten: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def silent(self) -> bool:
        return not self._flowing.is_set()

    @silent.setter
    def silent(self, silent: bool) -> None:
        # Threads wait for this event instead of polling: there may be a thousand connections.
        if silent:
            self._flowing.clear()
        else:
            self._flowing.set()

    def cut(self) -> int:
        """Close every connection. Returns how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _close(pair)
        return len(pairs)

    def forget(self) -> int:
        """Drop everything on the present connections. Returns how many there are."""
        with self._lock:
            self._forgotten |= self._pairs
            return len(self._pairs)

    def close(self) -> None:
        self.refusing = True
        self._forgotten.clear()
        self._never.set()
        self._flowing.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._to_port))
        except OSError:
            client.close()
            return
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        for source, target in (pair, pair[::-1]):
            threading.Thread(target=self._pass, args=(source, target, pair), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source is pair[0] and self._breaks(data):
                    break
                if self.delay:
                    time.sleep(self.delay)
                self._flowing.wait()
                if pair in self._forgotten:
                    self._never.wait()
                if source is pair[0] and self.refusal is not None:
                    source.sendall(f"-{self.refusal}\r\n".encode() * _commands(data))
                    continue
                target.sendall(data)
        with self._lock:
            self._pairs.discard(pair)
        _close(pair)

    def _breaks(self, data: bytes) -> bool:
        """Whether every connection breaks at this chunk."""
        with self._lock:
            if self.breaking_at is None or self.breaking_at not in data:
                return False
            self.breaking_at, self.refusing = None, True
        self.cut()
        return True


def _commands(data: bytes) -> int:
    """How many commands begin in a chunk: arrays of bulk strings, whose contents hold no such line here."""
    return len(re.findall(rb"(?:^|\r\n)\*\d+\r\n(?=\$)", data))


def _close(pair: tuple[socket.socket, socket.socket]) -> None:
    for each in pair:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
