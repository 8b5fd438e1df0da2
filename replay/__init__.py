"""Publish again what was published once: chosen, counted, recorded, compared beforehand; and dead letters.

May import runtime, schemas and the stages. Never: typer, a screen.
"""
