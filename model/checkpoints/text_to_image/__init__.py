"""Folders of text-to-image pipelines: what they are, their parts, their defaults and how to write one."""
