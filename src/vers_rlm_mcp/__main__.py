"""`python -m vers_rlm_mcp` is the command `vers-rlm-mcp`."""

from vers_rlm_mcp.cli import main

main()
