"""The kernels: one door to the compiled extension, and a NumPy reference beside it."""
