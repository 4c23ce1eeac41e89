from denoised.app.launch.cli import main

main()
