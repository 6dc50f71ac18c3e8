"""/api, as Ollama has it."""
