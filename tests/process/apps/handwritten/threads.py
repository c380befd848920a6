"""Two servers in one process, each with a loop of its own in a thread of its own; the other's port is one higher."""

from __future__ import annotations

import os
import signal
import threading
import time

import uvicorn
from app import app

PORT = int(os.environ["PORT"])


def main() -> None:
    """Serve until SIGTERM: a server that is not in the main thread handles no signals."""
    servers = [uvicorn.Server(uvicorn.Config(app, port=port)) for port in (PORT, PORT + 1)]

    def stop(*_: object) -> None:
        for server in servers:
            server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    threads = [threading.Thread(target=server.run) for server in servers]
    for server, thread in zip(reversed(servers), reversed(threads), strict=True):
        # Whoever gets an answer at the first port may use the second.
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
