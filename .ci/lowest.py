"""Prints the lowest versions of what pyproject.toml asks for, as requirements of pip."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in (*project["dependencies"], *project["optional-dependencies"]["test"]):
    if ">=" not in requirement:
        sys.exit(f"Expected a lower bound, got {requirement}")
    print(requirement.replace(">=", "=="))
