"""What the sections of a run share: a folder, the servers, how long they may take, and whom they tell."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.effort import Effort
from bench.servers import Servers, all_servers


@dataclass
class Place:
    """folder: for what programs write, gone afterwards; say: gets a line for a person."""

    folder: Path
    effort: Effort
    say: Callable[[str], None]
    stack: ExitStack
    _servers: Servers | None = field(default=None, init=False)

    @property
    def servers(self) -> Servers:
        """Started when they are first asked for, and alive from then to the end of the run."""
        if self._servers is None:
            self.say("starting the servers")
            self._servers = self.stack.enter_context(all_servers(self.folder))
        return self._servers
