"""`python -m samples.benchmark`."""

import sys

from samples.benchmark.runner import main

sys.exit(main())
