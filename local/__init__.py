"""The embedded stack: a real Kafka, PostgreSQL and ClickHouse engine, a vendor simulator and every role, on one machine.

    LocalStackError            the stack cannot start, stop or continue; one line that says what to do
    ├── PortError              a port is taken, or cannot be used as a fixed port
    ├── ArtifactError          a downloaded part is missing or is not the one that was pinned
    ├── AlreadyRunningError    another supervisor holds the state directory
    └── StartError             a process of the stack did not become ready

May import the stages, runtime and schemas. Never: api, console, and anything that a production deployment needs.
"""

from runtime.errors import HeliographError


class LocalStackError(HeliographError):
    """The embedded stack cannot do what was asked: the message is one line and says what to do."""


class PortError(LocalStackError):
    """A port is taken, or is in a range where it cannot be fixed."""


class ArtifactError(LocalStackError):
    """A downloaded part is missing, or is not the one that was pinned."""


class AlreadyRunningError(LocalStackError):
    """Another supervisor holds the state directory."""


class StartError(LocalStackError):
    """A process of the stack did not become ready."""
