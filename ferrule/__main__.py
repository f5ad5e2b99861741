"""`python -m ferrule` and the `ferrule` command: the command line of the compiler."""


def main() -> None:
    """Run the command line on `sys.argv` and exit with its status."""
    from .compiler.cli import main as run  # pyright: ignore[reportMissingImports]

    run()


if __name__ == "__main__":
    main()
