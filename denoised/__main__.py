from denoised.cli.main import main

main()
