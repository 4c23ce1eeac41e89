"""Folders of ControlNets."""
