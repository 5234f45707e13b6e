"""Diff-Listener: generates how a listener moves while somebody speaks, and renders it as a 3D Gaussian head."""

__version__ = "0.1.0"
