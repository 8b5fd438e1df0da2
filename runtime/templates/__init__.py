"""Templates: a subset of Jinja, checked when written (check.py) and rendered by minijinja (engine.py).

The only package that imports jinja2 and minijinja. Never: Kafka, a channel's meaning.
"""
