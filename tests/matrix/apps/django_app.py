"""MCP inside Django, under ASGI: a view that hands a scope of its own to the SDK's session manager."""

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DJANGO_MCP_GET_SERVER_INSTRUCTIONS_TOOL=False,
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.sessions", "rest_framework", "mcp_server"],
    REST_FRAMEWORK={"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": []},
    ROOT_URLCONF="mcp_server.urls",
    SECRET_KEY="x",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    USE_TZ=True,
)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402 (Django's settings come first)
from mcp_server.djangomcp import global_mcp_server  # noqa: E402
from opentelemetry import trace  # noqa: E402

tracer = trace.get_tracer("app")
global_mcp_server.stateless = True


@global_mcp_server.tool()
async def add(a: int, b: int) -> int:
    with tracer.start_as_current_span("query"):
        return a + b


@global_mcp_server.tool()
async def fail() -> str:
    raise KeyError("secret")


app = get_asgi_application()
