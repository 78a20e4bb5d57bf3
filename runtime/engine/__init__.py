"""The open graphs of a variant: tensors in, tensors out, with the KV cache between."""
