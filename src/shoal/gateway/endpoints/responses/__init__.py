"""/v1/responses: answers that are kept, and conversations that go on from them."""
