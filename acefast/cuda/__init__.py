"""CUDA C++ kernels of csrc/: one launch wrapper per op, of the same name and signature as in acefast.kernels."""
