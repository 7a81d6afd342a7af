"""Stands in for ComfyUI's package `comfy`: as much of it as the pack uses."""
