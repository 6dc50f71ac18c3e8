"""What bodies have in common: fields, sampling, pages, and what the OpenAPI document says of them."""
