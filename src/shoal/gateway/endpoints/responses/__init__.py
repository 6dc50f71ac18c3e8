"""/v1/responses: answers that are kept, and conversations that continue from them."""
