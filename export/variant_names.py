"""The name of the variant that `export` makes without a recipe."""

from __future__ import annotations

LOSSLESS = "cpu-fp32"  # the checkpoint's own weights, computed with in float32
