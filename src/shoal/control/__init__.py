"""The control conversation between the head and its nodes, over gRPC."""
