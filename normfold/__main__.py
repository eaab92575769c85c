"""``python -m normfold`` is the ``normfold`` command."""

from normfold.cli import main

if __name__ == "__main__":
    main()
