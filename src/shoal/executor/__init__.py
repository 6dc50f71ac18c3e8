"""Runs a stage: the layers of one node, its KV pool, and the sampler on the last one."""
