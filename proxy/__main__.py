"""`python -m proxy` is the same as the command `beacon-proxy`."""

from proxy.cli.main import main

if __name__ == "__main__":
    main()
