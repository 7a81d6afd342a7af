"""`python -m rddm_core`."""

from .cli import program

if __name__ == "__main__":
    program()
