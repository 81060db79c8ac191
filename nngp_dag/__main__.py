"""The command `nngp-dag`, also as `python -m nngp_dag`."""

import sys

from nngp_dag import interrupt


def main() -> None:
    """Runs the command line; an interruption is answered from here on, also while modules load."""
    interrupt.install(sys.argv[1:])
    from nngp_dag.cli import main

    main()


if __name__ == "__main__":
    main()
