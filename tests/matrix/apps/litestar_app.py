"""A server written by hand on Litestar."""

from typing import Any

from litestar import Litestar, Response, post
from protocol import answer


@post("/mcp", status_code=200)
async def serve(data: dict[str, Any]) -> Response[dict[str, Any] | None]:
    response = answer(data)
    return Response(response, status_code=202 if response is None else 200)


app = Litestar([serve])
