"""ONNX Runtime: its devices, their memory, and how a graph is opened and run."""
