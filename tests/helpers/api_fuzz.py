"""schemathesis against a server of the sample model, for minutes or for hours.

.venv/bin/python -m tests.helpers.api_fuzz --examples 500 --coverage BUNDLE
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.serving import served
from tests.helpers.typed_app import running_app

ROOT = Path(__file__).parents[2]
# What it takes for granted, that all that fits the schema is answered, no schema can promise: it
# would have to say which bytes are an image, and which texts a label.
EXCLUDED = "positive_data_acceptance"


def run_schemathesis(
    port: int, folder: Path, *, examples: int, seed: int, coverage: bool = False
) -> subprocess.CompletedProcess[str]:
    """Ask a server for its document, and then all that this promises and more.

    Args:
        port: of the server on this machine.
        folder: where schemathesis may leave what it learns.
        examples: requests made up for each operation.
        seed: of what is made up.
        coverage: whether each bound of each field is tried too, which takes minutes.
    """
    phases = ["examples", *(["coverage"] if coverage else []), "fuzzing"]
    command = [
        *(sys.executable, "-m", "schemathesis.cli"),
        *("run", f"http://127.0.0.1:{port}/openapi.json"),
        *("--max-examples", str(examples), "--seed", str(seed), "--no-shrink"),
        *("--phases", ",".join(phases), "--exclude-checks", EXCLUDED, "--warnings", "off"),
    ]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "SCHEMATHESIS_HOOKS": "tests.helpers.api_hooks",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def main() -> int:
    """Run it and print what it found."""
    parser = argparse.ArgumentParser(description="schemathesis against a server of a bundle")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", action="store_true")
    options = parser.parse_args()
    with running_app(options.bundle) as app, served(app) as address:
        ended = run_schemathesis(
            address.port,
            Path.cwd(),
            examples=options.examples,
            seed=options.seed,
            coverage=options.coverage,
        )
    print(ended.stdout, ended.stderr)
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
