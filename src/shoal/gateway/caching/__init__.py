"""An engine that gives answers again."""
