"""The app that APP names, behind the middleware of Starlette that WRAPPED names."""

import os
from importlib import import_module
from typing import Any

from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.gzip import GZipMiddleware

inner = import_module(os.environ["APP"]).app


class Bearer(AuthenticationBackend):
    """Takes what a client brings for its user's name."""

    async def authenticate(self, conn: Any) -> tuple[AuthCredentials, SimpleUser] | None:
        scheme, _, name = conn.headers.get("authorization", "").partition(" ")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if scheme == "Bearer" else None


app = {
    "authentication": lambda: AuthenticationMiddleware(inner, backend=Bearer()),
    "gzip": lambda: GZipMiddleware(inner, minimum_size=1),
}[os.environ["WRAPPED"]]()
