"""Tests of what leaves the package."""
