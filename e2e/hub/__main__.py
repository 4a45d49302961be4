"""``python -m e2e.hub ROOT [--port 0] [--host 127.0.0.1]``: serve a folder as a model hub."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from e2e.hub.server import LocalHub


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m e2e.hub", description="Serve a folder as a model hub, print its URL."
    )
    parser.add_argument("root", type=Path, help="folder of <org>/<name> and datasets/<org>/<name>")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    arguments = parser.parse_args()
    if not arguments.root.is_dir():
        parser.error(f"{arguments.root} must be a folder")
    with LocalHub(arguments.root, arguments.host, arguments.port) as hub, suppress(KeyboardInterrupt):
        print(hub.url, flush=True)
        hub.serve_forever()


if __name__ == "__main__":
    main()
