"""Thousands of malformed requests to the service, and of damaged files to its image decoder.

    python benchmarks/fuzz_service.py model.onnx --schemathesis path/to/schemathesis

The decoder of uploads gets damaged files (hypothesis); a service in a process of its own gets requests that fit its
OpenAPI description and requests that don't (schemathesis, which may be installed in an environment of its own). Every
response must be as described, none a 5xx, and the service must be healthy afterwards. Whether requests that fit the
description are accepted is not checked: it cannot say which texts are images, or which classes a detector has.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service import ask_all, memory, request, served

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--files", type=int, default=10_000, help="for the decoder")
    parser.add_argument("--examples", type=int, default=2_500, help="at most, per route and phase, for the service")
    parser.add_argument("--schemathesis", default="schemathesis", help="the program")
    options = parser.parse_args()
    files(options.files)
    with served(options.model) as port:
        before = memory(port)
        command = [
            options.schemathesis, "run", f"http://127.0.0.1:{port}/openapi.json", "--checks", "all",
            "--max-examples", str(options.examples), "--phases", "examples,coverage,fuzzing", "--seed", "0",
            "--continue-on-failure", "--exclude-checks", "positive_data_acceptance",
        ]  # fmt: skip
        failed = subprocess.run(command, check=False).returncode
        health = asyncio.run(ask_all(port, [request("GET", "/healthz", b"")]))[0][0]
        print(f"healthz afterwards: {health}; memory {before:.0f} MB before, {memory(port):.0f} MB after")
    sys.exit(failed)


def files(cases: int) -> None:
    """Damaged files for the decoder."""
    from helpers.uploads import check_decoded, damaged

    count = 0

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.one_of(damaged(), st.binary(max_size=200)))
    def attempt(data: bytes) -> None:
        nonlocal count
        count += 1
        check_decoded(data)

    attempt()
    print(f"{count} files for the decoder: each an image, or refused with a reason")


if __name__ == "__main__":
    main()
