"""Adapters (LoRA): their files, the names of their keys, and the layers they belong to."""
