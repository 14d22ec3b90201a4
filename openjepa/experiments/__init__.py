"""Runs that are compared at equal images and at equal time: plan.py, speed.py, running.py, results.py, tables.py."""
