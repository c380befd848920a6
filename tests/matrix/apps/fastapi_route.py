"""A server written by hand on FastAPI."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from protocol import answer

app = FastAPI()


@app.post("/mcp")
async def serve(request: Request) -> Response:
    response = answer(await request.json())
    return Response(status_code=202) if response is None else JSONResponse(response)
