"""From weights to codes and scales, with the statistics that decide."""
