"""How the page is served: the command that starts Streamlit on the packaged app, and what it is told through the environment.

Pure apart from one look at the port. The page itself is `demo_app`.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

__all__ = ["DEVICE_VARIABLE", "MODEL_VARIABLE", "demo_command", "demo_environment", "port_is_free"]

MODEL_VARIABLE = "EAGLE_SERVE_MODEL"
DEVICE_VARIABLE = "EAGLE_SERVE_DEVICE"

_MAX_UPLOAD_MB = 1024


def demo_command(host: str, port: int) -> list[str]:
    """The command line, first the Python that runs this."""
    return [
        *(sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name("demo_app.py"))),
        *("--server.address", host, "--server.port", str(port), "--server.headless", "true"),
        *("--server.maxUploadSize", str(_MAX_UPLOAD_MB), "--server.fileWatcherType", "none"),
        # A press of Stop must end the run that streams before the next one looks at the conversation.
        *("--runner.fastReruns", "false"),
        *("--browser.gatherUsageStats", "false", "--client.toolbarMode", "minimal", "--client.showErrorDetails", "none"),
        *("--theme.light.primaryColor", "#0d8577", "--theme.dark.primaryColor", "#2bc0ae"),
    ]


def demo_environment(model: str, device: str) -> dict[str, str]:
    """Variables for the page."""
    return {MODEL_VARIABLE: model, DEVICE_VARIABLE: device}


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError:
        return False
    return True
