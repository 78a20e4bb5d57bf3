"""The name of the variant that `export` makes without a recipe."""

from __future__ import annotations

from paligemma_edge.quantize.recipes.recipe import LOSSLESS_RECIPE

LOSSLESS_VARIANT = f"cpu-{LOSSLESS_RECIPE}"
