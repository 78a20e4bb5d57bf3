"""`python -m paligemma_edge.runtime.cli`."""

import sys

from paligemma_edge.runtime.cli.main import main

sys.exit(main())
