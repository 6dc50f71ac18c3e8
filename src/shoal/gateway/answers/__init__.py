"""From a request's job to the text of its answer, and the unfinished answers."""
