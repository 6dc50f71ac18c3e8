"""Other OpenAI-compatible servers as replicas: `forwarding` is entered before the endpoints, and `upstreams` knows who has which model."""
