"""The tools, resources and prompts that the conformance suite asks a server for, under the names that it knows them by.

The SDK's server class and FastMCP's register functions in the same way, so both are filled here.
"""

# No postponed annotations: both libraries look for `Context` in them, which is a parameter here.
import asyncio
import base64
import json
from typing import Annotated, Any, Final

from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from opentelemetry import trace
from pydantic import BaseModel, Field

PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SILENCE: Final = base64.b64encode(
    b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0data\0\0\0\0"
).decode()
_PAUSE: Final = 0.05
tracer = trace.get_tracer("app")


class Person(BaseModel):
    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: str = Field("active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = True


def _titled(prefix: str, title: str) -> list[dict[str, str]]:
    return [{"const": f"{prefix}{number}", "title": f"{title} {number}"} for number in (1, 2, 3)]


_PLAIN: Final = ["option1", "option2", "option3"]


class Choices(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": _PLAIN})
    titledSingle: str = Field(json_schema_extra={"oneOf": _titled("value", "Option")})
    legacyEnum: str = Field(json_schema_extra={"enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]})
    untitledMulti: list[str] = Field(json_schema_extra={"items": {"type": "string", "enum": _PLAIN}})
    titledMulti: list[str] = Field(json_schema_extra={"items": {"anyOf": _titled("value", "Choice")}})


def _form(message: str, name: str, kind: str = "string") -> ElicitRequest:
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _sample(text: str, tokens: int = 100) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(text=text))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=tokens))


def _resource(uri: str, kind: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=kind, text=text))


def _image() -> ImageContent:
    return ImageContent(data=PIXEL, mime_type="image/png")


def fill(mcp: Any, Context: Any) -> None:
    """Register everything; `Context` is the class by which a function of this library asks for its context."""
    _contents(mcp)
    _notifications(mcp, Context)
    _questions(mcp, Context)
    _rounds(mcp, Context)
    _rounds_with_state(mcp, Context)
    _resources(mcp)


def _contents(mcp: Any) -> None:
    @mcp.tool(description="Text")
    async def test_simple_text() -> str:
        with tracer.start_as_current_span("query"):
            return "This is a simple text response for testing."

    @mcp.tool(description="Image")
    def test_image_content() -> list[ImageContent]:
        return [_image()]

    @mcp.tool(description="Audio")
    def test_audio_content() -> list[AudioContent]:
        return [AudioContent(data=SILENCE, mime_type="audio/wav")]

    @mcp.tool(description="Resource")
    def test_embedded_resource() -> list[EmbeddedResource]:
        return [_resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")]

    @mcp.tool(description="Several contents")
    def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
        data = json.dumps({"test": "data", "value": 123})
        text = TextContent(text="Multiple content types test:")
        return [text, _image(), _resource("test://mixed-content-resource", "application/json", data)]

    @mcp.tool(description="An argument that is repeated in a header")
    def test_header_argument(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
        return region

    @mcp.tool(description="Needs what the client has not")
    def test_missing_capability() -> str:
        data = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(code=MISSING_REQUIRED_CLIENT_CAPABILITY, message="Sampling is needed", data=data)

    @mcp.tool(description="Failure")
    def test_error_handling() -> str:
        raise RuntimeError("This tool intentionally returns an error for testing")


def _notifications(mcp: Any, Context: Any) -> None:
    async def log(ctx: Any) -> str:
        for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(text)
            await asyncio.sleep(_PAUSE)
        return "logged"

    @mcp.tool(description="Log messages")
    async def test_tool_with_logging(ctx: Context) -> str:
        return await log(ctx)

    @mcp.tool(description="Log messages")
    async def test_logging_tool(ctx: Context) -> str:
        return await log(ctx)

    @mcp.tool(description="Progress")
    async def test_tool_with_progress(ctx: Context) -> str:
        for progress in (0, 50, 100):
            await ctx.report_progress(progress, 100)
            await asyncio.sleep(_PAUSE)
        return "done"

    @mcp.tool(description="Stream closed by the server")
    async def test_reconnection(ctx: Context) -> str:
        await ctx.close_sse_stream()
        await asyncio.sleep(2 * _PAUSE)
        return "Reconnection test completed"


def _questions(mcp: Any, Context: Any) -> None:
    """Requests of the server to the client, as the revisions before 2026-07-28 have them."""

    @mcp.tool(description="Sampling")
    async def test_sampling(prompt: str, ctx: Context) -> str:
        request = _sample(prompt).params
        # On the stream of this call: whether the client has opened another yet, nobody knows.
        answer = await ctx.session.create_message(
            messages=request.messages, max_tokens=request.max_tokens, related_request_id=ctx.request_id
        )
        return f"LLM response: {answer.content.text}"

    async def elicit(ctx: Any, message: str, form: type[BaseModel]) -> str:
        answer = await ctx.elicit(message, form)
        content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
        return f"User response: action={answer.action}, content={content}"

    @mcp.tool(description="Elicitation")
    async def test_elicitation(message: str, ctx: Context) -> str:
        return await elicit(ctx, message, Person)

    @mcp.tool(description="Elicitation with defaults")
    async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
        return await elicit(ctx, "Who are you?", Defaults)

    @mcp.tool(description="Elicitation with enumerations")
    async def test_elicitation_sep1330_enums(ctx: Context) -> str:
        return await elicit(ctx, "Which?", Choices)


def _missing(ctx: Any, asked: dict[str, Any], state: str | None = None) -> InputRequiredResult | None:
    """What the client has still to be asked."""
    if asked.keys() <= (ctx.input_responses or {}).keys() and ctx.request_state == state:
        return None
    return InputRequiredResult(input_requests=asked, request_state=state)


def _rounds(mcp: Any, Context: Any) -> None:
    """Questions since 2026-07-28: a result that asks, and a repeated request that answers."""

    @mcp.tool(description="Asks the user")
    async def test_input_required_result_elicitation(ctx: Context):
        return _missing(ctx, {"user_name": _form("What is your name?", "name")}) or "Hello!"

    @mcp.tool(description="Asks the model")
    async def test_input_required_result_sampling(ctx: Context):
        return _missing(ctx, {"capital_question": _sample("What is the capital of France?")}) or "Paris"

    @mcp.tool(description="Asks for roots")
    async def test_input_required_result_list_roots(ctx: Context):
        return _missing(ctx, {"client_roots": ListRootsRequest()}) or "roots"

    @mcp.tool(description="Asks what the client can")
    async def test_input_required_result_capabilities(ctx: Context):
        return _missing(ctx, {"question": _sample("Anything?")}) or "done"

    @mcp.tool(description="Asks on a stream")
    async def test_streaming_elicitation(ctx: Context):
        await ctx.report_progress(1, 2)
        return _missing(ctx, {"user_name": _form("What is your name?", "name")}) or "done"

    @mcp.prompt(description="Asks before it answers")
    async def test_input_required_result_prompt(ctx: Context):
        return _missing(ctx, {"user_context": _form("What context should the prompt use?", "context")}) or "prompt"


def _rounds_with_state(mcp: Any, Context: Any) -> None:
    @mcp.tool(description="Asks with a state")
    async def test_input_required_result_request_state(ctx: Context):
        return _missing(ctx, {"confirm": _form("Please confirm", "ok", "boolean")}, "confirming") or "state-ok"

    @mcp.tool(description="Asks with a state that is protected")
    async def test_input_required_result_tampered_state(ctx: Context):
        return _missing(ctx, {"confirm": _form("Please confirm", "ok", "boolean")}, "protected") or "state-ok"

    @mcp.tool(description="Asks everybody")
    async def test_input_required_result_multiple_inputs(ctx: Context):
        asked = {
            "user_name": _form("What is your name?", "name"),
            "greeting": _sample("Generate a greeting", 50),
            "client_roots": ListRootsRequest(),
        }
        return _missing(ctx, asked, "several") or "all"

    @mcp.tool(description="Asks twice")
    async def test_input_required_result_multi_round(ctx: Context):
        if ctx.request_state != "second":
            first = _missing(ctx, {"step1": _form("Step 1: What is your name?", "name")}, "first")
            return first or _missing(ctx, {"step2": _form("Step 2: What is your favorite color?", "color")}, "second")
        return _missing(ctx, {"step2": _form("Step 2: What is your favorite color?", "color")}, "second") or "done"


def _resources(mcp: Any) -> None:
    @mcp.resource("test://static-text", description="Text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @mcp.resource("test://static-binary", description="Image", mime_type="image/png")
    def static_binary() -> bytes:
        return base64.b64decode(PIXEL)

    @mcp.resource("test://watched-resource", description="Watched", mime_type="text/plain")
    def watched() -> str:
        return "Watched"

    @mcp.resource("test://template/{id}/data", description="Template", mime_type="application/json")
    def template(id: str) -> str:
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})
