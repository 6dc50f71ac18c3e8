"""Parts that request bodies share: fields, sampling, pages, and their description in the OpenAPI document."""
