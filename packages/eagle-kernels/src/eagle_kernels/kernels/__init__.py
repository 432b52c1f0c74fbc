"""The Triton kernels and their launchers, imported on first use so that the package loads without a GPU or Triton."""
