"""`python -m denoised.app`: the server's commands."""

from denoised.app.launch.cli import main

main()
