"""Sweeps: many recipes trained in processes, on this machine or on a cluster; resumable."""
