"""What clients of chat completions need: the server's address, an image, a client of OpenAI's."""

from __future__ import annotations

import base64
from pathlib import Path

import openai

from tests.helpers.serving import Running


def url_of(running: Running) -> str:
    """The address of a server, without a path."""
    return f"http://127.0.0.1:{running.address.port}"


def data_url(image: Path | bytes) -> str:
    """A PNG as a data: URI."""
    data = image if isinstance(image, bytes) else image.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def openai_client(running: Running, retries: int = 0) -> openai.OpenAI:
    """A client of a server."""
    return openai.OpenAI(base_url=f"{url_of(running)}/v1", api_key="none", max_retries=retries)
