"""`python -m nngp_dag` is the command line."""

from nngp_dag.cli import main

if __name__ == "__main__":
    main()
