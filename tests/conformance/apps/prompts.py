"""The prompts that the conformance suite asks for."""

from typing import Any

from everything import _image, _resource
from mcp_types import TextContent


def fill_prompts(mcp: Any, Message: Any) -> None:
    """Register them; `Message` makes a message of the user from one content, as this library has it."""

    def text(words: str) -> Any:
        return Message(TextContent(text=words))

    @mcp.prompt(description="Simple")
    def test_simple_prompt() -> list[Any]:
        return [text("This is a simple prompt for testing.")]

    @mcp.prompt(description="With arguments")
    def test_prompt_with_arguments(arg1: str, arg2: str) -> list[Any]:
        return [text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]

    @mcp.prompt(description="With a resource")
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[Any]:
        resource = _resource(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [Message(resource), text("Please process the embedded resource above.")]

    @mcp.prompt(description="With an image")
    def test_prompt_with_image() -> list[Any]:
        return [Message(_image()), text("Please analyze the image above.")]
