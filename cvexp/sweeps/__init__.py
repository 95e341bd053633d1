"""Sweeps: several jobs started by one command, with `-m`."""
