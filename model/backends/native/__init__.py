"""The U-Net on a CPU in kernels of our own, compiled for the network and the machine when the model is loaded.

An image gets the same bits in a batch of any size, at any place in it, with any number of threads.

`compiler` compiles the C files, `kernels` binds their functions, `layers` and `conversion` put them in the places of a
U-Net's modules, `recorded_graph` records what a network calls, and `thread_pool` evaluates it. docs/decisions.md has
the measurements.
"""
