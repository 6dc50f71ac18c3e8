"""What a model says that calls `get_weather` for a city."""

PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
LYON = PARIS.replace("Paris", "Lyon")
