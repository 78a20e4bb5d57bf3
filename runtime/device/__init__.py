"""ONNX Runtime: on what it runs, where memory lies, how a graph is opened and run."""
