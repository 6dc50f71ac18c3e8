"""POST /v1/messages, as in Anthropic's API."""
