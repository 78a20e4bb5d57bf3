"""`python -m paligemma_edge` is the command `paligemma-edge`."""

import sys

from paligemma_edge.runtime.cli.start import main

sys.exit(main())
