"""`python -m samples.benchmark`."""

import sys

from samples.benchmark.compare import main

sys.exit(main())
