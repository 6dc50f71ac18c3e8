"""A head and its nodes on a Ray cluster: an actor for each process, on machines that Ray chooses. Only this package imports Ray."""
