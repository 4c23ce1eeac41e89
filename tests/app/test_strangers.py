"""Without API keys, only this machine is served."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from denoised.app.launch.cli import cli


@pytest.mark.parametrize("command", ["serve", "api"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_without_keys_the_server_listens_only_locally(command: str, host: str) -> None:
    refused = CliRunner().invoke(cli, [command, "--host", host])
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert host in refused.stderr
    assert "DENOISED_API_KEYS" in refused.stderr
    assert "--trust-network" in refused.stderr
