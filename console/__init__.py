"""What people touch: the `heliograph` command, a module per subject.

May import everything below. Never: a rule about notifications (it belongs to a stage).
"""
