"""The OpenAI-compatible API: each public endpoint translates to one internal request."""
