"""/api, as in Ollama's API."""
