"""The provider as a process: `python tests/provider/serve.py --port 8123 --latency 0.05`; GET /_counts counts them."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)

from provider import Provider  # noqa: E402
from provider.limits import RateLimit  # noqa: E402


def main() -> None:
    """Serve until the process is ended; prints the base_url first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--rpm", type=float, help="requests a minute that are let through")
    parser.add_argument("--burst", type=float, help="requests that may come at once under --rpm")
    parser.add_argument("--silent", action="store_true", help="no x-ratelimit headers")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--key", default="", help="the one key that is let in; without it all are")
    given = parser.parse_args()
    with Provider(given.port, key=given.key, latency=given.latency) as provider:
        if given.rpm:
            provider.limit = RateLimit(given.rpm, given.burst, in_headers=not given.silent)
        if given.faults:
            provider.inject_random_faults(given.faults)
        print(provider.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
