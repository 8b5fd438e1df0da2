"""Measurements, as ratios and figures of one run; never asserted by a test.

May import every layer. Never: a figure from another machine.
"""
