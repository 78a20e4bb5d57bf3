"""From a request to an answer: validation, prefill, steps, and the choice of each token."""
