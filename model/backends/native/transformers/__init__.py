"""The transformers of text-conditioned U-Nets in C kernels."""
