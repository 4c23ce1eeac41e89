"""What the sections of one benchmark run share: a folder, the servers, the run's length and its log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.load.servers import Servers, all_servers
from bench.run_length import RunLength


@dataclass
class BenchmarkRun:
    """One run of the benchmark.

    folder: temporary, for what the programs write.
    length: how long to measure.
    log: prints a line for a person.
    stack: closes what was started at the end of the run.
    """

    folder: Path
    length: RunLength
    log: Callable[[str], None]
    stack: ExitStack
    _servers: Servers | None = field(default=None, init=False)

    @property
    def servers(self) -> Servers:
        """All servers, started on first use and kept alive until the end of the run."""
        if self._servers is None:
            self.log("starting the servers")
            self._servers = self.stack.enter_context(all_servers(self.folder))
        return self._servers
