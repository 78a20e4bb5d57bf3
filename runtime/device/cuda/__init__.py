"""NVIDIA GPUs: the driver, the libraries, and what their errors mean."""
