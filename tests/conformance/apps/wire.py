"""Notes every request that reaches the app, with the status that it is answered: one JSON text a line in WIRE."""

import json
import os
from typing import Any


def counted(app: Any) -> Any:
    """The app, unchanged for both sides; what passes is written down once it has been answered."""

    async def recorded(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body, status = bytearray(), 0

        async def received() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, received, sent)
        finally:
            note = {"method": scope["method"], "status": status, "body": body.decode(errors="replace")}
            with open(os.environ["WIRE"], "a") as file:  # noqa: ASYNC230 (a test's record)
                file.write(json.dumps(note) + "\n")

    return recorded
