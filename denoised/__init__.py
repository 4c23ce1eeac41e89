"""The client of a denoised server, for Python programs and the command line. Needs neither torch nor the server."""
