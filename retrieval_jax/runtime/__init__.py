"""Devices, hosts, files, interruptions and progress: all that a run needs besides arrays."""
