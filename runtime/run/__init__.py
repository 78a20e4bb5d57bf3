"""What `paligemma-edge run` does: many pictures, from wherever they come to wherever answers go."""
