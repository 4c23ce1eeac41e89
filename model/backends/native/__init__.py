"""The U-Net on a CPU in kernels of our own: compiled for the network and the machine when it is loaded.

An image gets the same bits in a batch of any size, at any place in it, with any number of threads.
`kernels` compiles and binds the C files beside it, `layers` are what stands between two tensors,
`network` puts them in the places of a U-Net's parts. docs/decisions.md has the figures.
"""
