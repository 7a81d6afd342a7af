"""Measuring restored pictures against their targets."""
