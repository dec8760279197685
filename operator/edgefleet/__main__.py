"""`edgefleet ...`, also installed as the kubectl plugin `kubectl edgefleet ...`."""

import sys

from edgefleet.cli.app import run


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
