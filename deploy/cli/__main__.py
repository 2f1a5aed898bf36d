"""``python -m understudy.deploy.cli``."""

from understudy.deploy.cli.main import main

main()
