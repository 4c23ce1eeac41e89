"""What the terminal commands of every program share. Imports typer and nothing of ours."""
