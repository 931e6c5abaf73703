"""`python -m lmm_ecr.cli`: the `lmm-ecr` command without its script."""

from . import main

main()
