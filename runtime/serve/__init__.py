"""PaliGemma over HTTP: an OpenAI-compatible API, typed endpoints, and a page."""
