"""What others do, or what we would do without our own ways: each a program that runs in an environment of its own.

`*.in` names the packages of an environment, `*.txt` pins them. The first lines of a `.in` say why it is apart.
May import its environment's packages, bench.data and what that needs. Never: another rival.
"""
